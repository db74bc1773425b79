"""Who computes which photo: each photo belongs to exactly one of the processes that can read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opslib.vision.data import SPLITS, Photo, Photos
from opslib.vision.distributed import Ranks


@dataclass(frozen=True)
class Share:
    """The photos of all processes, and which of them are this one's.

    Attributes:
        photos: All photos in one order that is the same everywhere; a path may exist on its owner's host only.
        sizes: Bytes of each photo by its key.
        positions: For each split, the positions in `photos.files` of those that are this process's own.
    """

    photos: Photos
    sizes: Mapping[str, int]
    positions: Mapping[str, tuple[int, ...]]

    def own(self, split: str) -> list[Photo]:
        """Return this process's photos of a split."""
        return [self.photos.files[split][position] for position in self.positions[split]]


def share_photos(photos: Photos, ranks: Ranks) -> Share:
    """Share out the photos of all processes, in turn among those that have them.

    Processes may see the same folder (S3's `FullyReplicated`), or each its own part of it (`ShardedByS3Key`).

    Raises:
        HostLost: Another process is gone.
    """
    seen = ranks.gather({photo.key: photo.path.stat().st_size for photo in photos})
    sizes = {key: size for rank in seen for key, size in rank.items()}
    owners = _owners(sorted(sizes), seen)
    paths = {photo.key: photo.path for photo in photos}
    classes = sorted({key.split("/")[1] for key in sizes})
    files = {split: _files(split, sizes, paths, classes) for split in SPLITS}
    positions = {
        split: tuple(index for index, photo in enumerate(files[split]) if owners[photo.key] == ranks.rank)
        for split in SPLITS
    }
    return Share(Photos(photos.root, tuple(classes), files, photos.ignored), sizes, positions)


def _owners(keys: Sequence[str], seen: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the owner of every key: of those that have the photo, the one with the fewest of its split so far."""
    owners: dict[str, int] = {}
    counts = {split: [0] * len(seen) for split in SPLITS}
    for key in keys:
        count = counts[key.split("/")[0]]
        holders = [rank for rank, held in enumerate(seen) if key in held]
        owners[key] = min(holders, key=lambda rank: (count[rank], rank))
        count[owners[key]] += 1
    return owners


def _files(
    split: str, sizes: Mapping[str, int], paths: Mapping[str, Path], classes: Sequence[str]
) -> tuple[Photo, ...]:
    index = {name: position for position, name in enumerate(classes)}
    keys = sorted((key for key in sizes if key.startswith(f"{split}/")), key=lambda key: key.split("/", 2))
    return tuple(Photo(paths.get(key, Path(key)), index[key.split("/")[1]], key) for key in keys)
