"""Fine-tuning of the backbone's last stages, after the head has learnt to read the frozen ones."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import torch
from PIL import Image
from torch import nn

from opslib.errors import ConfigurationError
from opslib.specs import TrainingSpec
from opslib.vision.backbones import Backbone
from opslib.vision.data import Photo
from opslib.vision.features import FeatureExtractor
from opslib.vision.model import Classifier
from opslib.vision.runtimes import PHOTOS_PER_BATCH
from opslib.vision.sharing import Share
from opslib.vision.threads import torch_threads
from opslib.vision.transforms import evaluation_pixels, normalised, training_pixels

BACKBONE_SLOWER = 10.0
"""The last stage learns by a tenth of the head's learning rate: it is nearly right already."""

STAGE_SLOWER = 3.0
"""Each earlier stage learns by a third of the one after it: edges and colours are the same in all photos."""

_MOST_OF = 0.8


def backbone_stages(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of a backbone's stages by their names, in the order in which a photo passes them.

    The stages are the children of the network, or of the one part of it that holds most of its weights (`features`,
    `blocks`, `encoder.layers`); what stands before and after that part belongs to its first and its last stage.
    """
    path, part = _main_part(module, "")
    prefix = f"{path}." if path else ""
    stages = {f"{prefix}{name}": list(child.parameters()) for name, child in part.named_children() if _weight(child)}
    first, last = next(iter(stages)), next(reversed(stages))
    inside = {id(parameter) for parameters in stages.values() for parameter in parameters}
    seen = False
    for parameter in module.parameters():
        if id(parameter) in inside:
            seen = True
        else:
            stages[last if seen else first].append(parameter)
    return stages


def _main_part(module: nn.Module, path: str) -> tuple[str, nn.Module]:
    """Return the innermost part that holds most of the weights and has several children with weights."""
    for name, child in module.named_children():
        several = sum(_weight(grandchild) > 0 for grandchild in child.children()) > 1
        if several and _weight(child) >= _MOST_OF * _weight(module):
            return _main_part(child, f"{path}.{name}" if path else name)
    return path, module


def _weight(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class FineTuning:
    """The head and the last stages on random crops, new in every epoch; the `Problem` of `fitting.fit`.

    It begins with the head that has learnt to read the frozen stages: the gradients of a random head would undo what
    they know. BatchNorm keeps ImageNet's statistics. The whole network runs for every photo and epoch: features of a
    backbone that learns cannot be kept.
    """

    def __init__(
        self, classifier: Classifier, backbone: Backbone, share: Share, spec: TrainingSpec, extractor: FeatureExtractor
    ) -> None:
        """Unfreeze the stages.

        Raises:
            ConfigurationError: The backbone has fewer stages.
        """
        self.module = classifier.to(extractor.device, memory_format=torch.channels_last)
        self.groups = [{"params": list(classifier.head.parameters()), "lr": spec.learning_rate}]
        self.groups += _unfrozen_groups(classifier.backbone, spec)
        self.size, self.validation_size = len(share.photos.files["train"]), len(share.photos.files["valid"])
        self._seed, self._share, self._extractor, self._view = spec.seed, share, extractor, backbone.transform
        self._own = {position: share.photos.files["train"][position] for position in share.positions["train"]}
        self._pool = ThreadPoolExecutor(extractor.workers, thread_name_prefix="decoding")

    def train_scores(self, epoch: int, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield scores and labels of this rank's photos of a batch, a few at a time, each in this epoch's crop."""
        photos = [self._own[row] for row in rows.tolist() if row in self._own]
        crop = training_pixels(self._view)

        def pixels(picture: Image.Image, photo: Photo) -> numpy.ndarray:
            return crop(picture, random.Random(f"{self._seed}/{epoch}/{photo.key}"))  # noqa: S311 - no secret

        for few in self._few(photos):
            yield self._scores(few, pixels), torch.tensor([photo.label for photo in few], dtype=torch.int64)

    def validation_scores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores and labels of this rank's validation photos."""
        labels = [photo.label for photo in self._share.own("valid")]
        return self.scores("valid"), torch.tensor(labels, dtype=torch.int64)

    @torch.inference_mode()
    def scores(self, split: str) -> torch.Tensor:
        """Return the scores of the centre views of this rank's photos of a split, float32 (photos, classes)."""
        centre, photos = evaluation_pixels(self._view), self._share.own(split)
        with torch_threads(self._extractor.workers):
            rows = [self._scores(few, lambda picture, _: centre(picture)) for few in self._few(photos)]
        return torch.cat(rows) if rows else torch.empty(0, len(self._share.photos.classes))

    def _few(self, photos: Sequence[Photo]) -> Iterator[Sequence[Photo]]:
        """Yield photos in batches that the device computes fast; their gradients add up to the whole batch's."""
        size = PHOTOS_PER_BATCH[self._extractor.device.type]
        for start in range(0, len(photos), size):
            yield photos[start : start + size]

    def _scores(self, photos: Sequence[Photo], pixels: Callable[[Image.Image, Photo], numpy.ndarray]) -> torch.Tensor:
        views = list(self._pool.map(lambda photo: pixels(self._extractor.decode(photo), photo), photos))
        batch = torch.from_numpy(numpy.stack(views)).to(self._extractor.device)
        return self.module(normalised(batch, self._view).contiguous(memory_format=torch.channels_last)).cpu()


def check_unfreeze(module: nn.Module, spec: TrainingSpec) -> None:
    """Refuse to unfreeze more stages than there are.

    Raises:
        ConfigurationError: The backbone has fewer stages.
    """
    stages = backbone_stages(module)
    if spec.unfreeze > len(stages):
        raise ConfigurationError(
            f"unfreeze is {spec.unfreeze}, but {spec.backbone} has {len(stages)} stages",
            hint=f"its stages, the first to see a photo first: {', '.join(stages)}",
        )


def _unfrozen_groups(module: nn.Module, spec: TrainingSpec) -> list[dict[str, Any]]:
    check_unfreeze(module, spec)
    stages, groups = backbone_stages(module), []
    for depth, name in enumerate(list(reversed(stages))[: spec.unfreeze]):
        parameters = [parameter.requires_grad_(True) for parameter in stages[name]]
        groups.append({"params": parameters, "lr": spec.learning_rate / BACKBONE_SLOWER / STAGE_SLOWER**depth})
    return groups
