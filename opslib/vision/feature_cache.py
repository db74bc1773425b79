"""Features on disk, found again by content: the photo's bytes, the backbone's weights, the view.

A cache is a folder of shelves, one for each backbone and transform. A shelf is a folder of files that are written once
and never changed, each with some rows and their keys: several processes may fill a shelf at once, a kill loses a few
seconds of work, and the folder may travel (SageMaker copies a checkpoint folder to S3 and back).
"""

import hashlib
import json
import os
import secrets
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy
import torch

from opslib.vision.backbones import Backbone

MAX_CACHE_BYTES = 8 << 30
"""Above this size the files that were not used for longest are deleted; 8 GiB hold a million photos of ResNet-50."""

_FORMAT = "features-1"
_SUFFIX = ".npz"
_PARTIAL = ".partial-"
# What numpy and zipfile raise for files that are cut, changed or something else altogether.
_DAMAGE = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
_ROWS_PER_FILE, _SECONDS_PER_FILE = 4096, 5.0


def digest(*parts: bytes) -> bytes:
    """Return a key of 32 bytes that differs where any of the parts differ."""
    key = hashlib.sha256()
    for part in parts:
        key.update(len(part).to_bytes(8, "little") + part)
    return key.digest()


def backbone_digest(backbone: Backbone, precision: str) -> str:
    """Return a name for everything but the photo that decides its features: weights, transform and precision."""
    about = json.dumps([_FORMAT, backbone.name, backbone.features, asdict(backbone.transform), precision])
    tensors = (value.detach().cpu().contiguous().flatten() for value in backbone.module.state_dict().values())
    return digest(about.encode(), *(value.view(torch.uint8).numpy().tobytes() for value in tensors)).hex()[:32]


@dataclass
class Shelf:
    """The rows of one backbone and transform; `get` and `put` may be called by many threads."""

    directory: Path
    features: int
    _rows: dict[bytes, numpy.ndarray] = field(default_factory=dict)
    _unsaved: dict[bytes, numpy.ndarray] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _saved_at: float = field(default_factory=time.monotonic)

    def get(self, key: bytes) -> numpy.ndarray | None:
        """Return the row of a key, float32 of shape (features,), or None."""
        return self._rows.get(key)

    def put(self, key: bytes, row: numpy.ndarray) -> None:
        """Keep a row; it is on disk a few seconds later, or when `save` is called."""
        with self._lock:
            self._rows[key] = self._unsaved[key] = row
            due = len(self._unsaved) >= _ROWS_PER_FILE or time.monotonic() - self._saved_at > _SECONDS_PER_FILE
        if due:
            self.save()

    def save(self) -> None:
        """Write the rows that are not on disk yet, in one file that appears whole or not at all.

        A disk that is full or read-only costs the time to compute them again, and nothing else.
        """
        with self._lock:
            rows, self._unsaved, self._saved_at = self._unsaved, {}, time.monotonic()
        if rows:
            with suppress(OSError):
                _write(self.directory, rows)

    def load(self) -> None:
        """Read every file of the shelf; one that is damaged is deleted, and its photos are computed again."""
        for path in sorted(self.directory.glob(f"*{_SUFFIX}")):
            try:
                keys, values = _read(path, self.features)
            except _DAMAGE:
                with suppress(OSError):
                    path.unlink()
                continue
            self._rows.update(zip(map(bytes, keys), values, strict=True))


@dataclass(frozen=True)
class FeatureCache:
    """A folder of shelves."""

    directory: Path

    def shelf(self, backbone: Backbone, precision: str) -> Shelf:
        """Return the shelf of a backbone as it stands on disk, and prune what has not been used for longest."""
        shelf = Shelf(self.directory / backbone_digest(backbone, precision), backbone.features)
        shelf.load()
        self.prune()
        return shelf

    def prune(self, max_bytes: int = MAX_CACHE_BYTES) -> None:
        """Delete the files that were not used for longest until the others take at most `max_bytes`."""
        files = sorted(_files(self.directory), key=lambda file: -file[1].st_mtime)
        total = 0
        for path, status in files:
            total += status.st_size
            if total > max_bytes:
                with suppress(OSError):
                    path.unlink()


def _files(directory: Path) -> Iterable[tuple[Path, os.stat_result]]:
    for path in directory.glob("*/*"):
        with suppress(OSError):  # another process has just deleted it
            yield path, path.stat()


def _write(directory: Path, rows: dict[bytes, numpy.ndarray]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    keys = numpy.frombuffer(b"".join(rows), dtype=numpy.uint8).reshape(len(rows), -1)
    partial = directory / f"{_PARTIAL}{secrets.token_hex(8)}"
    try:
        with partial.open("wb") as file:
            numpy.savez(file, keys=keys, values=numpy.stack(list(rows.values())))
        partial.replace(directory / f"{digest(*rows).hex()[:16]}{_SUFFIX}")
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path, features: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    with path.open("rb") as stream, numpy.load(stream, allow_pickle=False) as file:
        keys, values = file["keys"], file["values"]
    fits = keys.ndim == 2 and keys.dtype == numpy.uint8 and values.dtype == numpy.float32
    if not fits or values.shape != (len(keys), features) or not numpy.isfinite(values).all():
        raise ValueError(f"{path} holds no features")
    os.utime(path)  # used now: `prune` begins with those that were not
    return keys, values
