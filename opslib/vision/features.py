"""What the frozen backbone sees in each photo: computed once, then trained on for as many epochs as it takes."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy
import torch
from PIL import Image

from opslib.errors import PhotosError
from opslib.vision.backbones import Backbone
from opslib.vision.data import Photo
from opslib.vision.decoding import PhotoDecodingError, decode_photo
from opslib.vision.feature_cache import FeatureCache, Shelf, digest
from opslib.vision.runtimes import Runtime, build_runtime, precision_on
from opslib.vision.threads import single_threaded_torch, usable_cores
from opslib.vision.transforms import evaluation_pixels, training_pixels

# While one thread of a core computes, the other reads and decodes the next photo (210 photos/s became 230).
_THREADS_PER_CORE = 2

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
class View:
    """How to look at a photo: a name that differs where the pixels differ, and the crop itself."""

    name: Callable[[Photo], str]
    pixels: Callable[[Image.Image, Photo], numpy.ndarray]


@dataclass(frozen=True)
class FeatureExtractor:
    """Runs photos through a backbone in threads that each read, decode, crop and compute.

    Pillow, OpenVINO and torch free the lock while they work. A photo computed by one thread needs no other thread to
    wait for: that is faster than every operation on all cores, and stays so when other programs want the cores too.

    Attributes:
        backbone: The network; what runs is a copy of it (see `runtimes`).
        device: Where it runs.
        workers: Number of cores to use; 0 takes all.
        cache: Where features are kept and found again; None keeps nothing.
    """

    backbone: Backbone
    device: torch.device
    workers: int = 0
    cache: FeatureCache | None = None

    def centre_views(self, photos: Sequence[Photo], progress: Progress | None = None) -> Features:
        """Return the features of the centre view of every photo, in order: what inference will see.

        Raises:
            PhotosError: A photo cannot be decoded; the message names it.
        """
        pixels = evaluation_pixels(self.backbone.transform)
        return self._extract(photos, View(lambda _: "centre", lambda picture, _: pixels(picture)), progress)

    def random_views(self, photos: Sequence[Photo], seed: str, progress: Progress | None = None) -> Features:
        """Return the features of a random crop of every photo; a photo's crop depends on `seed` and its key only.

        Raises:
            PhotosError: A photo cannot be decoded; the message names it.
        """
        pixels = training_pixels(self.backbone.transform)

        def name(photo: Photo) -> str:
            return f"{seed}/{photo.key}"

        def crop(picture: Image.Image, photo: Photo) -> numpy.ndarray:
            return pixels(picture, random.Random(name(photo)))  # noqa: S311 - no secret

        return self._extract(photos, View(name, crop), progress)

    @cached_property
    def runtime(self) -> Runtime:
        """What computes; built when the first photo needs it, so not at all if every photo is in the cache."""
        return build_runtime(self.backbone, self.device, self._cores)

    @property
    def _cores(self) -> int:
        return self.workers or usable_cores()

    @cached_property
    def _shelf(self) -> Shelf | None:
        return self.cache.shelf(self.backbone, precision_on(self.device)) if self.cache else None

    def _extract(self, photos: Sequence[Photo], view: View, progress: Progress | None) -> Features:
        values = torch.empty(len(photos), self.backbone.features)
        # torch keeps the number of threads per thread: each worker must be told.
        pool = ThreadPoolExecutor(self._cores * _THREADS_PER_CORE, initializer=torch.set_num_threads, initargs=(1,))
        with single_threaded_torch():
            try:
                keys = self._keys(photos, view, pool)
                missing = self._fill_from_cache(keys, values) if keys else list(range(len(photos)))
                if progress is not None and len(missing) < len(photos):
                    progress(len(photos) - len(missing))
                for rows in self._computed(photos, missing, view, pool):
                    self._keep(rows, keys, values)
                    if progress is not None:
                        progress(len(rows))
            finally:
                pool.shutdown(cancel_futures=True)
                if self._shelf is not None:
                    self._shelf.save()
        return Features(values, torch.tensor([photo.label for photo in photos], dtype=torch.int64))

    def _keys(self, photos: Sequence[Photo], view: View, pool: ThreadPoolExecutor) -> list[bytes]:
        """Return the cache's key of every photo; nothing without a cache."""
        if self._shelf is None:
            return []
        return list(pool.map(lambda photo: digest(_read(photo), view.name(photo).encode()), photos))

    def _fill_from_cache(self, keys: Sequence[bytes], values: torch.Tensor) -> list[int]:
        """Copy the rows that the cache has, and return the positions of the others."""
        missing = []
        for position, key in enumerate(keys):
            row = self._shelf.get(key)
            if row is None:
                missing.append(position)
            else:
                values[position] = torch.from_numpy(row)
        return missing

    def _computed(
        self, photos: Sequence[Photo], positions: Sequence[int], view: View, pool: ThreadPoolExecutor
    ) -> Iterator[dict[int, torch.Tensor]]:
        """Yield the features of the photos at some positions, a batch at a time."""
        if not positions:
            return
        runtime = self.runtime

        def compute(batch: Sequence[int]) -> dict[int, torch.Tensor]:
            pixels = numpy.stack([view.pixels(self.decode(photos[position]), photos[position]) for position in batch])
            return dict(zip(batch, runtime.compute(pixels), strict=True))

        size = runtime.batch_size
        yield from pool.map(compute, [positions[start : start + size] for start in range(0, len(positions), size)])

    def _keep(self, rows: dict[int, torch.Tensor], keys: Sequence[bytes], values: torch.Tensor) -> None:
        for position, row in rows.items():
            values[position] = row
            if keys:
                self._shelf.put(keys[position], row.numpy())

    def decode(self, photo: Photo) -> Image.Image:
        """Return a photo as the backbone's views are cut from it: upright, RGB, shrunk no further than they allow.

        Raises:
            PhotosError: It cannot be decoded; the message names it.
        """
        try:
            return decode_photo(_read(photo), shortest_side=self.backbone.transform.decoded_side)
        except PhotoDecodingError as error:
            raise _unusable(photo, error) from error


def _read(photo: Photo) -> bytes:
    try:
        return photo.path.read_bytes()
    except OSError as error:
        raise _unusable(photo, error) from error


def _unusable(photo: Photo, error: Exception) -> PhotosError:
    hint = "check_photos names such photos before they are uploaded"
    return PhotosError(f"{photo.key} cannot be used: {error}", hint=hint)
