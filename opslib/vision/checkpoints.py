"""The state of a training, on disk after every epoch: what a restarted job goes on from, to the same weights.

<checkpoint_dir>/features/...                   features by content, shared by every job that uses the folder
<checkpoint_dir>/training/<identity>/state.pt   the state of the one training that this identity names
"""

import hashlib
import io
import json
import os
import pickle
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SAVE_EVERY_SECONDS = 1.0
"""Epochs of a head take a twentieth of a second: a kill may cost this much work."""

_FORMAT = 2
_DIGEST_BYTES = hashlib.sha256().digest_size


class Interrupted(Exception):  # noqa: N818 - it ends a job in good order; it is no error
    """SIGTERM came, and what was done is saved: the same command goes on from there."""


@dataclass
class Interruption:
    """Whether this process was asked to end."""

    requested: bool = False

    def raise_if_requested(self) -> None:
        """Raise `Interrupted` when SIGTERM came.

        Raises:
            Interrupted: This process was asked to end.
        """
        if self.requested:
            raise Interrupted


@contextmanager
def awaited_interruption() -> Iterator[Interruption]:
    """Note SIGTERM instead of dying of it: what ends a process in good order sends it some time before it kills.

    SageMaker does so two minutes before, but to the container's first process, a shell that does not pass it on in
    AWS's images (aws/sagemaker-training-toolkit, issue 125). There a job goes on from its last saved epoch.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield interruption
        return

    def note(*_: object) -> None:
        interruption.requested = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGTERM, before)


def training_identity(*parts: Any) -> str:
    """Return a name for everything that decides the weights: jobs that share a folder take up only their own state."""
    return hashlib.sha256(json.dumps([_FORMAT, *parts], sort_keys=True, default=str).encode()).hexdigest()[:24]


@dataclass
class Checkpoint:
    """Where one training keeps its state; `path` None keeps nothing.

    Attributes:
        path: The file, which always holds a whole state.
        log: Receives a line when a state is taken up or cannot be used.
    """

    path: Path | None = None
    log: Callable[[str], None] = lambda _: None
    _saved_at: float = field(default_factory=time.monotonic)

    def save(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Write the state in one step, unless the last one is younger than a second and `now` is false.

        Raises:
            OSError: The disk is full or cannot be written.
        """
        if self.path is None or not (now or time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".partial-{secrets.token_hex(8)}")
        content = io.BytesIO()
        torch.save(state(), content)
        try:
            with partial.open("wb") as file:
                file.write(hashlib.sha256(content.getbuffer()).digest())
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the state, or None if there is none; one that is damaged is put aside, and training starts anew."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            state = _read(self.path)
            self.log(f"resumed after epoch {state['epoch']} from {self.path}")
            return state
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            self.put_aside(f"damaged and not used: {type(error).__name__}")
            return None

    def put_aside(self, reason: str) -> None:
        """Say why the state cannot be used, and keep it under another name: training starts anew."""
        self.log(f"the checkpoint {self.path} is {reason}")
        if self.path is not None:
            with suppress(OSError):
                self.path.replace(self.path.with_suffix(".damaged"))


def _read(path: Path) -> dict[str, Any]:
    """Return the state in a file that begins with the SHA-256 of the rest: torch itself misses a changed byte."""
    content = path.read_bytes()
    digest, rest = content[:_DIGEST_BYTES], memoryview(content)[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        raise ValueError("its checksum is wrong")
    return torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)


def open_checkpoint(directory: Path | None, identity: str, log: Callable[[str], None]) -> Checkpoint:
    """Return the checkpoint of the training of that identity below a checkpoint folder, if there is one."""
    return Checkpoint(directory / "training" / identity / "state.pt" if directory else None, log)
