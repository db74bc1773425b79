"""What the frozen backbone sees in each photo: computed once, then trained on for as many epochs as it takes."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import nn

from opslib.errors import PhotosError
from opslib.vision.backbones import Backbone
from opslib.vision.data import Photo
from opslib.vision.decoding import PhotoDecodingError, decode_photo
from opslib.vision.folding import fold_batch_norm
from opslib.vision.transforms import evaluation_transform, training_transform

_PHOTOS_PER_BATCH = 32
_BATCHES_AHEAD = 3

Progress = Callable[[int], None]
"""Called with the number of photos of every batch that is done."""


@dataclass(frozen=True)
class Features:
    """Features of some photos: `values` float32 of shape (N, features), `labels` int64 of shape (N,), on the CPU."""

    values: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)


@dataclass(frozen=True)
class FeatureExtractor:
    """Runs photos through a backbone: decoding in threads (Pillow frees the lock), the network on `device`.

    `workers` is the number of decoding threads; 0 takes one for every core.
    """

    backbone: Backbone
    device: torch.device
    workers: int = 0

    def centre_views(self, photos: Sequence[Photo], progress: Progress | None = None) -> Features:
        """Return the features of the centre view of every photo, in order: what inference will see.

        Raises:
            PhotosError: A photo cannot be decoded; the message names it.
        """
        transform = evaluation_transform(self.backbone.transform)
        return self._extract(photos, lambda photo: transform(_decode(photo, self.backbone)), progress)

    def random_views(self, photos: Sequence[Photo], seed: str, progress: Progress | None = None) -> Features:
        """Return the features of a random crop of every photo; a photo's crop depends on `seed` and its key only.

        Raises:
            PhotosError: A photo cannot be decoded; the message names it.
        """
        transform = training_transform(self.backbone.transform)

        def load(photo: Photo) -> torch.Tensor:
            return transform(_decode(photo, self.backbone), random.Random(f"{seed}/{photo.key}"))  # noqa: S311 - a view

        return self._extract(photos, load, progress)

    @cached_property
    def _network(self) -> nn.Module:
        module = fold_batch_norm(self.backbone.module, self.backbone.transform.size)
        return module.to(device=self.device, memory_format=torch.channels_last)

    def _extract(
        self, photos: Sequence[Photo], load: Callable[[Photo], torch.Tensor], progress: Progress | None
    ) -> Features:
        values = torch.empty(len(photos), self.backbone.features)
        done = 0
        with ThreadPoolExecutor(self.workers or os.cpu_count()) as pool, torch.inference_mode():
            for views in _batches(pool, photos, load):
                batch = torch.stack(views).to(device=self.device, memory_format=torch.channels_last)
                values[done : done + len(views)] = self._network(batch).flatten(1).cpu()
                done += len(views)
                if progress is not None:
                    progress(len(views))
        return Features(values, torch.tensor([photo.label for photo in photos], dtype=torch.int64))


def _batches(
    pool: ThreadPoolExecutor, photos: Sequence[Photo], load: Callable[[Photo], torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    """Yield batches in order while the next few are being decoded: the network never waits, and memory is bounded."""
    waiting: list[list[Future[torch.Tensor]]] = []
    for start in range(0, len(photos), _PHOTOS_PER_BATCH):
        waiting.append([pool.submit(load, photo) for photo in photos[start : start + _PHOTOS_PER_BATCH]])
        if len(waiting) > _BATCHES_AHEAD:
            yield [future.result() for future in waiting.pop(0)]
    for batch in waiting:
        yield [future.result() for future in batch]


def _decode(photo: Photo, backbone: Backbone) -> Image.Image:
    try:
        return decode_photo(photo.path.read_bytes(), shortest_side=backbone.transform.decoded_side)
    except (PhotoDecodingError, OSError) as error:
        raise PhotosError(
            f"{photo.key} cannot be used: {error}", hint="check_photos names such photos before they are uploaded"
        ) from error
