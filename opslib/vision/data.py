"""What the user has (a folder, an archive, an S3 prefix, nothing yet) turned into train, valid and test photos."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from opslib.errors import PhotosError
from opslib.vision.archives import extract_archive
from opslib.vision.download import check_sha256, download
from opslib.vision.layout import SPLITS, ListedPhoto, fill_splits, list_photos, unwrap
from opslib.vision.samples import draw_sample

__all__ = ["SAMPLE", "SPLITS", "Photo", "Photos", "open_photos", "prepare_photos"]

SAMPLE = "sample"
"""The source that needs no download: the drawn sample set."""

_SOURCES = f"name a folder, a zip or tar, an https:// or s3:// address, or {SAMPLE!r} to draw a set"
_LAYOUT_HINT = "expected FOLDER/CLASS/photo.jpg, or FOLDER/{train,valid,test}/CLASS/photo.jpg"


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo file; `label` indexes `Photos.classes`, `key` is its place in a bucket: `train/CLASS/NAME`."""

    path: Path
    label: int
    key: str


@dataclass(frozen=True)
class Photos:
    """Photos in three splits, with one list of classes for all of them.

    Attributes:
        root: The folder that holds the splits or the classes.
        classes: Class names in the order of the model's scores.
        files: The photos of each split, in a stable order.
        ignored: Visible files in class folders that are not JPEG, PNG or WebP by name.
    """

    root: Path
    classes: tuple[str, ...]
    files: Mapping[str, tuple[Photo, ...]]
    ignored: tuple[Path, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of photos of each split."""
        return {split: len(self.files[split]) for split in SPLITS}

    def items(self) -> Iterator[tuple[str, Path]]:
        """Yield (key, path) of every photo: what an upload needs."""
        for photo in self:
            yield photo.key, photo.path

    def __iter__(self) -> Iterator[Photo]:
        """Iterate over the photos of all splits."""
        for split in SPLITS:
            yield from self.files[split]

    def __len__(self) -> int:
        """Return the number of photos of all splits."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        """Return one line for people."""
        counts = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
        return f"{len(self):,} photos of {len(self.classes)} classes ({counts}) in {self.root}"


def prepare_photos(
    source: str | Path,
    directory: str | Path,
    *,
    fetch_s3: Callable[[str, Path], object] | None = None,
    sha256: str = "",
    seed: int = 0,
) -> Photos:
    """Turn what the user has into train, valid and test photos.

    A folder is used where it lies; everything else is put under `directory`, once: a second call finds it there.

    Args:
        source: `"sample"` (drawn, no download), a folder, a zip or tar file, the https URL of one, or an s3:// prefix.
        directory: Where downloads, extracted archives and the sample go.
        fetch_s3: Downloads the prefix (first argument) into a folder (second): `opslib.aws.storage.download_prefix`.
        sha256: Checksum of the archive in hex, if known.
        seed: Draws the sample, and splits a folder that has no splits.

    Raises:
        PhotosError: There is nothing usable there.
        DownloadError: The archive cannot be fetched whole, or has another checksum.
    """
    directory, text = Path(directory), str(source).strip()
    scheme = urlsplit(text).scheme.lower() if "://" in text else ""
    if text == SAMPLE:
        return open_photos(_drawn(directory, seed))
    if scheme == "s3":
        return open_photos(_fetched(text, directory, fetch_s3), seed=seed)
    if scheme == "https":
        return open_photos(_extracted(_downloaded(text, directory, sha256), directory), seed=seed)
    if scheme:
        raise PhotosError(f"photos are not fetched over {scheme}: {text}", hint="use an https:// or s3:// address")
    path = Path(text).expanduser()
    if path.is_file():
        if sha256:
            check_sha256(path, sha256)
        return open_photos(_extracted(path, directory), seed=seed)
    if path.is_dir() and text:
        return open_photos(path, seed=seed)
    raise PhotosError(f"there is no folder or file {text!r}", hint=_SOURCES)


def open_photos(folder: str | Path, *, seed: int = 0, fill: bool = True) -> Photos:
    """List the photos of a folder in ImageFolder layout, without copying or opening them.

    `valid`, `validation` and `val` are the same split. A folder that only wraps the photos is stepped into. Splits that
    are missing are taken from the training photos, class by class, and always the same ones for the same `seed`, unless
    `fill` is false: a folder with a part of the photos says nothing of what the others hold. Hidden files, broken links
    and other files are left out; linked folders below a class are not followed.

    Raises:
        PhotosError: There are no photos in this layout.
    """
    root = unwrap(Path(folder).expanduser())
    listing = list_photos(root)
    if not listing.photos.get("train"):
        raise PhotosError(f"there are no training photos in {root}", hint=_LAYOUT_HINT)
    _refuse_twins(listing.photos)
    if fill:
        fill_splits(listing.photos, seed)
    classes = tuple(sorted({photo.label for photos in listing.photos.values() for photo in photos}))
    index = {name: position for position, name in enumerate(classes)}
    files = {
        split: tuple(
            Photo(photo.path, index[photo.label], f"{split}/{photo.label}/{photo.name}")
            for photo in sorted(listing.photos.get(split, []))
        )
        for split in SPLITS
    }
    return Photos(root, classes, files, tuple(listing.ignored))


def _refuse_twins(listed: Mapping[str, list[ListedPhoto]]) -> None:
    """Refuse two photos with one key: only one of them could be uploaded, or counted."""
    for split, photos in listed.items():
        seen: dict[tuple[str, str], Path] = {}
        for photo in photos:
            twin = seen.setdefault((photo.label, photo.name), photo.path)
            if twin != photo.path:
                raise PhotosError(
                    f"{twin} and {photo.path} are both the {split} photo {photo.label}/{photo.name}",
                    hint="rename or remove one of them",
                )


def _drawn(directory: Path, seed: int) -> Path:
    folder = directory / f"{SAMPLE}-{seed}"
    if not folder.is_dir():
        draw_sample(folder, seed=seed)
    return folder


def _fetched(uri: str, directory: Path, fetch_s3: Callable[[str, Path], object] | None) -> Path:
    if fetch_s3 is None:
        raise PhotosError(f"{uri} needs a downloader", hint="pass fetch_s3=opslib.aws.storage.download_prefix")
    folder = directory / _cache_name(uri, uri)
    folder.mkdir(parents=True, exist_ok=True)
    fetch_s3(uri, folder)
    return folder


def _downloaded(url: str, directory: Path, sha256: str) -> Path:
    name = _cache_name(unquote(urlsplit(url).path.rpartition("/")[2]), url)
    return download(url, directory / "downloads" / name, sha256=sha256)


def _extracted(archive: Path, directory: Path) -> Path:
    status = archive.stat()
    folder = directory / _cache_name(archive.stem, f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}")
    if not folder.is_dir():
        extract_archive(archive, folder)
    return folder


def _cache_name(readable: str, identity: str) -> str:
    """Return a file name that a person recognises and that differs where `identity` differs."""
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', readable).strip('-')[:40] or 'photos'}-{digest}"
