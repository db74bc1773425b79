"""A look at all photos before anything is uploaded: what cannot be used, what will mislead, and a picture of them."""

import hashlib
import html
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from opslib.errors import PhotosError
from opslib.vision.contact_sheets import contact_sheet
from opslib.vision.data import SPLITS, Photo, Photos
from opslib.vision.decoding import PhotoDecodingError, decode_photo

__all__ = ["FEW_PHOTOS", "PhotoReport", "check_photos", "contact_sheet"]

FEW_PHOTOS = 5
"""A class with fewer training photos than this is reported."""

_SHOWN = 8
# A JPEG is decoded at an eighth of its size: every byte is still read, so damage is found, in a third of the time.
_CHECKED_SIDE = 32


@dataclass(frozen=True)
class PhotoReport:
    """What `check_photos` found; readable as text and, in a notebook, as a table.

    Attributes:
        photos: The photos that were checked.
        unreadable: Key of each photo that cannot be decoded, and why.
        repeated: Groups of keys with the same bytes in more than one split: what was learnt by heart is tested.
        missing: For each split, the classes without a readable photo in it.
        few: Classes of fewer than five (but some) readable training photos, and how many they have.
    """

    photos: Photos
    unreadable: Mapping[str, str]
    repeated: Sequence[tuple[str, ...]]
    missing: Mapping[str, Sequence[str]]
    few: Mapping[str, int]

    @property
    def usable(self) -> Photos:
        """Return the photos without the unreadable ones."""
        files = {
            split: tuple(photo for photo in self.photos.files[split] if photo.key not in self.unreadable)
            for split in SPLITS
        }
        return replace(self.photos, files=files)

    def raise_for_problems(self) -> None:
        """Refuse photos that a classifier cannot be trained on; everything else is only reported.

        Raises:
            PhotosError: There are fewer than two classes, a class has no readable training photo, or nothing is left to
                choose or test by.
        """
        counts = self.usable.counts
        if len(self.photos.classes) < 2:
            raise PhotosError("there is only one class", hint="a classifier needs at least two folders of photos")
        if self.missing["train"]:
            raise PhotosError(
                f"no readable training photo of {_some(self.missing['train'])}", hint="add photos or remove the classes"
            )
        for split in SPLITS:
            if not counts[split]:
                raise PhotosError(f"there is no readable {split} photo", hint="add photos, or remove the split folders")

    def __str__(self) -> str:
        """Return counts and findings, a line each."""
        return "\n".join((str(self.photos), *(f"- {title}: {detail}" for title, detail in self._findings())))

    def _repr_html_(self) -> str:
        counts = "".join(f"<td>{count:,}</td>" for count in self.usable.counts.values())
        heads = "".join(f"<th>{split}</th>" for split in SPLITS)
        findings = "".join(
            f"<li><b>{html.escape(title)}</b>: {html.escape(detail)}</li>" for title, detail in self._findings()
        )
        return (
            f"<table><tr><th>classes</th>{heads}</tr><tr><td>{len(self.photos.classes)}</td>{counts}</tr></table>"
            f"<ul>{findings}</ul>"
        )

    def _findings(self) -> Iterator[tuple[str, str]]:
        sound = True
        for title, names in (
            (
                f"{len(self.unreadable)} left out, because they cannot be decoded",
                [f"{key} ({why})" for key, why in self.unreadable.items()],
            ),
            (f"{len(self.repeated)} are in two splits (leakage)", [" = ".join(keys) for keys in self.repeated]),
            *((f"{len(self.missing[split])} classes without a {split} photo", self.missing[split]) for split in SPLITS),
            (f"{len(self.few)} classes of fewer than {FEW_PHOTOS} training photos", [*self.few]),
            (f"{len(self.photos.ignored)} files are not JPEG, PNG or WebP", [p.name for p in self.photos.ignored]),
        ):
            if names:
                sound = False
                yield title, _some(names)
        if sound:
            yield "checked", "every photo can be decoded, every class is in every split, and no photo is in two splits"


def check_photos(photos: Photos) -> PhotoReport:
    """Read and decode every photo, on all cores, and report what is wrong with them; nothing is changed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = list(zip(photos, pool.map(_check, photos, chunksize=16), strict=True))
    unreadable = {photo.key: reason for photo, (_, reason) in checked if reason}
    readable = [photo for photo, (_, reason) in checked if not reason]
    per_split = Counter((_split(photo), photo.label) for photo in readable)
    return PhotoReport(
        photos=photos,
        unreadable=unreadable,
        repeated=_repeated([(photo.key, digest) for photo, (digest, _) in checked if digest]),
        missing={
            split: [name for label, name in enumerate(photos.classes) if not per_split[split, label]]
            for split in SPLITS
        },
        few={
            name: per_split["train", label]
            for label, name in enumerate(photos.classes)
            if 0 < per_split["train", label] < FEW_PHOTOS
        },
    )


def _check(photo: Photo) -> tuple[bytes, str]:
    """Return the digest of a photo's bytes, and what is wrong with it."""
    try:
        data = photo.path.read_bytes()
    except OSError as error:
        return b"", f"cannot be read: {error.strerror}"
    try:
        decode_photo(data, shortest_side=_CHECKED_SIDE)
    except PhotoDecodingError as error:
        return hashlib.sha256(data).digest(), error.message
    return hashlib.sha256(data).digest(), ""


def _repeated(digests: Sequence[tuple[str, bytes]]) -> list[tuple[str, ...]]:
    groups: dict[bytes, list[str]] = {}
    for key, digest in digests:
        groups.setdefault(digest, []).append(key)
    return [tuple(keys) for keys in groups.values() if len({key.partition("/")[0] for key in keys}) > 1]


def _split(photo: Photo) -> str:
    return photo.key.partition("/")[0]


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
