"""What the frozen backbone sees in each photo: computed once, then trained on for as many epochs as it takes."""

import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from opslib.vision.threads import single_threaded_torch
from opslib.vision.transforms import evaluation_transform, training_transform

# On a CPU the activations of a larger batch no longer fit the heap that malloc reuses: with 32 photos half of the time
# goes to the kernel, which maps and clears pages (32 photos per CPU second, against 64 in batches of 4).
_PHOTOS_PER_BATCH = {"cpu": 4, "cuda": 64}

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
    """Runs photos through a backbone, batch by batch, in threads that each decode, crop and compute.

    Pillow and torch free the lock while they work. A batch computed by one thread needs no other thread to wait for:
    that is a quarter faster than every operation on all cores, and stays so when other programs want the cores too.

    Attributes:
        backbone: The network; what runs is a copy with its BatchNorm folded in.
        device: Where it runs.
        workers: Number of threads; 0 takes one for every core.
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
        return self._extract(photos, lambda photo: transform(self._decode(photo)), progress)

    def random_views(self, photos: Sequence[Photo], seed: str, progress: Progress | None = None) -> Features:
        """Return the features of a random crop of every photo; a photo's crop depends on `seed` and its key only.

        Raises:
            PhotosError: A photo cannot be decoded; the message names it.
        """
        transform = training_transform(self.backbone.transform)

        def view(photo: Photo) -> torch.Tensor:
            return transform(self._decode(photo), random.Random(f"{seed}/{photo.key}"))  # noqa: S311 - no secret

        return self._extract(photos, view, progress)

    @cached_property
    def _network(self) -> nn.Module:
        module = fold_batch_norm(self.backbone.module, self.backbone.transform.size)
        return module.to(device=self.device, memory_format=torch.channels_last)

    def _extract(
        self, photos: Sequence[Photo], view: Callable[[Photo], torch.Tensor], progress: Progress | None
    ) -> Features:
        network, size = self._network, _PHOTOS_PER_BATCH[self.device.type]

        @torch.inference_mode()
        def compute(batch: Sequence[Photo]) -> torch.Tensor:
            views = torch.stack([view(photo) for photo in batch])
            return network(views.to(device=self.device, memory_format=torch.channels_last)).cpu()

        batches = [photos[start : start + size] for start in range(0, len(photos), size)]
        rows = []
        with single_threaded_torch():
            # torch keeps the number of threads per thread: each worker must be told.
            pool = ThreadPoolExecutor(self.workers or os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))
            try:
                for features in pool.map(compute, batches):
                    rows.append(features)
                    if progress is not None:
                        progress(len(features))
            finally:
                pool.shutdown(cancel_futures=True)
        values = torch.cat(rows) if rows else torch.empty(0, self.backbone.features)
        return Features(values, torch.tensor([photo.label for photo in photos], dtype=torch.int64))

    def _decode(self, photo: Photo) -> Image.Image:
        try:
            return decode_photo(photo.path.read_bytes(), shortest_side=self.backbone.transform.decoded_side)
        except (PhotoDecodingError, OSError) as error:
            raise PhotosError(
                f"{photo.key} cannot be used: {error}", hint="check_photos names such photos before they are uploaded"
            ) from error
