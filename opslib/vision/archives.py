"""Zip and tar archives of photos, extracted so that a hostile one can neither leave its folder nor fill the disk."""

import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from opslib.errors import PhotosError

MAX_BYTES = 30 * 1024**3
"""Most bytes that an archive may hold once extracted."""

MAX_MEMBERS = 1_000_000
"""Most files and folders that an archive may hold."""

_CHUNK_BYTES = 1024 * 1024
# zipfile says RuntimeError for a password and NotImplementedError for an unknown compression.
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)


class _Member(NamedTuple):
    name: str
    is_folder: bool
    is_file: bool
    open: Callable[[], IO[bytes]]


def extract_archive(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """Extract a zip or tar archive (also .gz, .bz2, .xz) into a new folder, which appears whole or not at all.

    Hidden files are left out. Only regular files are written, all of them below the folder, and what the archive claims
    about their sizes is not believed.

    Raises:
        PhotosError: It is no archive, damaged, encrypted or too large, or holds links or paths that leave the folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _extract(archive, partial, max_bytes)
        partial.chmod(0o755)  # mkdtemp made it private
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(archive: Path, folder: Path, max_bytes: int) -> None:
    bytes_left = min(max_bytes, shutil.disk_usage(folder).free)
    try:
        for count, member in enumerate(_members(archive)):
            if count >= MAX_MEMBERS:
                raise PhotosError(f"{archive.name} holds more than {MAX_MEMBERS:,} files")
            path = _safe_path(member, archive)
            if member.is_file and not any(part.startswith((".", "__MACOSX")) for part in path.parts):
                bytes_left -= _write(member, folder / path, bytes_left)
    except _DAMAGED as error:
        raise PhotosError(
            f"{archive.name} cannot be extracted: {error}",
            hint="fetch it again, or extract it yourself and pass the folder",
        ) from error


def _members(archive: Path) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        yield from _zip_members(archive)
    elif tarfile.is_tarfile(archive):
        yield from _tar_members(archive)
    else:
        raise PhotosError(f"{archive} is neither a zip nor a tar archive")


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as reader:
        for info in reader.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            is_file = not info.is_dir() and kind in (0, stat.S_IFREG)
            yield _Member(info.filename, info.is_dir(), is_file, lambda info=info: reader.open(info))


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive) as reader:
        for info in reader:
            yield _Member(info.name, info.isdir(), info.isreg(), lambda info=info: reader.extractfile(info))
        # tarfile takes a damaged header for the end of the archive, and never reads the checksum that ends a .gz.
        reader.fileobj.seek(reader.offset)
        if any(reader.fileobj.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("it is damaged after the last file that can be read")
        reader.fileobj.read(_CHUNK_BYTES)


def _safe_path(member: _Member, archive: Path) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise PhotosError(f"{archive.name} holds a path that leaves its folder: {member.name!r}")
    if not (member.is_file or member.is_folder):
        raise PhotosError(
            f"{archive.name} holds a link or a special file: {member.name!r}",
            hint="extract it yourself and pass the folder",
        )
    return path


def _write(member: _Member, path: Path, bytes_left: int) -> int:
    """Write one member and return its size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    source = member.open()
    with source, path.open("xb") as target:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > bytes_left:
                raise PhotosError(f"the archive holds more than may be extracted here, at {member.name!r}")
            target.write(chunk)
    return written
