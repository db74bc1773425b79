"""How photos lie in folders: splits or none, wrapping folders, names in any case; nothing is copied or opened."""

import hashlib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from opslib.errors import PhotosError

SPLITS = ("train", "valid", "test")
"""The names of the splits, in the order in which they are shown."""

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"})
"""Endings of the files that are taken for photos, in any case."""

_SPLIT_OF_FOLDER = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}
_SHARE_OF_SPLIT = {"valid": 0.15, "test": 0.15}


class ListedPhoto(NamedTuple):
    """A photo file: its class, its name below the class folder (with `/`), and where it is."""

    label: str
    name: str
    path: Path


class Listing(NamedTuple):
    """The photos of each split, and the visible files of class folders that are not photos by name."""

    photos: dict[str, list[ListedPhoto]]
    ignored: list[Path]


def list_photos(root: Path) -> Listing:
    """List the photos under a folder of splits, or (all as `train`) under a folder of classes."""
    splits = [folder for folder in _folders(root) if folder.name.lower() in _SPLIT_OF_FOLDER]
    # Splits hold class folders and classes hold photos: a folder of classes may well have a class named "test".
    if not any(_folders(split) for split in splits):
        return _list_classes([("train", root)])
    return _list_classes([(_SPLIT_OF_FOLDER[folder.name.lower()], folder) for folder in splits])


def unwrap(root: Path) -> Path:
    """Step through folders that hold nothing but one folder of folders, without photos of its own, as archives do.

    Raises:
        PhotosError: There is no such folder.
    """
    if not root.is_dir():
        raise PhotosError(f"there is no folder {root}")
    while len(inner := _folders(root)) == 1 and _is_wrapped(inner[0]):
        root = inner[0]
    return root


def fill_splits(photos: dict[str, list[ListedPhoto]], seed: int) -> None:
    """Move training photos of every class to the splits that have none: 15 % each, at least one while two are left.

    A photo's place depends on the seed and its name alone, so that the split is the same on every machine.
    """
    missing = [split for split in _SHARE_OF_SPLIT if not photos.get(split)]
    by_class: dict[str, list[ListedPhoto]] = {}
    for photo in photos["train"]:
        by_class.setdefault(photo.label, []).append(photo)
    photos["train"] = []
    for members in by_class.values():
        members.sort(key=lambda photo: hashlib.sha256(f"{seed}/{photo.label}/{photo.name}".encode()).digest())
        total = len(members)
        for split in missing:
            taken = min(max(1, round(total * _SHARE_OF_SPLIT[split])), len(members) - 1)
            photos.setdefault(split, []).extend(members[:taken])
            del members[:taken]
        photos["train"].extend(members)


def _list_classes(parents: list[tuple[str, Path]]) -> Listing:
    listing = Listing({}, [])
    for split, parent in parents:
        for folder in _folders(parent):
            # macOS and Linux archives spell é differently; one class must not become two.
            label = unicodedata.normalize("NFC", _readable(folder.name))
            for path in _files(folder):
                if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file():
                    name = unicodedata.normalize("NFC", _readable(path.relative_to(folder).as_posix()))
                    listing.photos.setdefault(split, []).append(ListedPhoto(label, name, path))
                else:
                    listing.ignored.append(path)
    return listing


def _readable(name: str) -> str:
    """Return the name; one that is no text can be neither a class nor a key in a bucket."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise PhotosError(f"the file name {name!r} is not UTF-8", hint="rename it, e.g. with convmv") from error
    return name


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if not _is_hidden(path.name) and path.is_dir())


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if not any(map(_is_hidden, path.relative_to(folder).parts)) and not path.is_dir():
            yield path


def _is_wrapped(folder: Path) -> bool:
    has_photos = any(path.suffix.lower() in PHOTO_SUFFIXES for path in folder.iterdir())
    return folder.name.lower() not in _SPLIT_OF_FOLDER and not has_photos and bool(_folders(folder))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
