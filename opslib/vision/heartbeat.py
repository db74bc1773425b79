"""How processes that train together notice that one of them is gone, in seconds and with the reason."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from torch.distributed import Store

from opslib.errors import HostLost
from opslib.vision.checkpoints import Interrupted

LOST_AFTER_SECONDS = 10.0
"""A process that has not been heard of for so long is lost; a living one says something every second."""

_BROKEN_LOST_AFTER_SECONDS = 3.0
"""The same once an exchange has failed: then somebody is gone, and the question is only who."""

_BEAT_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_INTERRUPTED = "interrupted"


class Watch:
    """Says once a second that this rank lives, listens to the others, and spreads the first reason to end.

    One thread talks to the store; a store whose host stands still never answers, so another one looks at the clock.
    """

    def __init__(self, rank: int, hosts: list[str], store: Store, on_lost: Callable[[str], None]) -> None:
        """Begin to watch.

        Args:
            rank: This process's.
            hosts: Name of every rank's host.
            store: A connection to the place where all meet that nobody else uses.
            on_lost: Called from another thread with the reason; the process ends right after with exit code 1.
        """
        self._rank, self._hosts, self._store, self._on_lost = rank, hosts, store, on_lost
        now = time.monotonic()
        self._counts = dict.fromkeys((other for other in range(len(hosts)) if other != rank), 0)
        self._heard_at = dict.fromkeys(self._counts, now)
        self._answered_at = now
        self._reason = ""
        self._broken, self._settled, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=run, name=run.__name__.strip("_"), daemon=True) for run in (self._beat, self._look)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop to watch; the store is free afterwards, unless it does not answer."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(2 * _BEAT_SECONDS)

    @contextmanager
    def loss_explained(self) -> Iterator[None]:
        """Turn torch's error about a closed connection into the reason of the one who is gone.

        Raises:
            HostLost: A rank is gone.
            Interrupted: A rank was asked to end, and with it all are.
        """
        try:
            yield
        except RuntimeError as error:
            self._broken.set()
            self._settled.wait(2 * LOST_AFTER_SECONDS)
            if self._reason == _INTERRUPTED:
                raise Interrupted from error
            # torch's words begin with its source file and end with good wishes.
            words = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
            reason = self._reason or f"another process that trains with this one is gone: {words}"
            raise HostLost(reason, hint="the log of the host that ended first says why") from error

    def tell(self, error: BaseException) -> None:
        """Let the others know why this rank ends; the first reason counts."""
        words = str(error).partition("\n")[0]
        ended = f"rank {self._rank} on {self._hosts[self._rank]} ended: {type(error).__name__}: {words}"
        self._spread(_INTERRUPTED if isinstance(error, Interrupted) else self._reason or ended)

    def _spread(self, reason: str) -> None:
        def spread() -> None:
            with suppress(RuntimeError):  # the store is gone: the others notice that as well
                self._store.compare_set("reason", "", reason)

        thread = threading.Thread(target=spread, name="last words", daemon=True)
        thread.start()
        thread.join(_BEAT_SECONDS)  # a store that stands still never answers

    def _beat(self) -> None:
        while not self._stopped.wait(_BEAT_SECONDS):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                counts = {rank: self._store.add(f"beat/{rank}", 0) for rank in self._counts}
                reason = self._store.get("reason").decode() if self._store.check(["reason"]) else ""
            except RuntimeError:
                self._end(f"{self._name(0)} was lost: the place where all meet is gone with it")
                return
            self._answered_at = time.monotonic()
            self._heard_at |= {rank: self._answered_at for rank, count in counts.items() if count > self._counts[rank]}
            self._counts = counts
            if reason:
                self._end(reason)
                return

    def _look(self) -> None:
        looked_at = time.monotonic()
        while not (self._stopped.wait(_LOOK_SECONDS) or self._settled.is_set()):
            now = time.monotonic()
            if now - looked_at > LOST_AFTER_SECONDS / 2:  # this process itself stood still, perhaps with its machine
                self._answered_at, self._heard_at = now, dict.fromkeys(self._heard_at, now)
            looked_at = now
            patience = _BROKEN_LOST_AFTER_SECONDS if self._broken.is_set() else LOST_AFTER_SECONDS
            if now - self._answered_at > patience:
                self._end(f"{self._name(0)} was lost: its store has not answered for {patience:.0f} s")
                return
            for rank, heard_at in self._heard_at.items():
                if self._answered_at - heard_at > patience:
                    self._end(f"{self._name(rank)} was lost: nothing was heard of it for {patience:.0f} s")
                    return

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self._hosts[rank]}"

    def _end(self, reason: str) -> None:
        """Settle the reason; end the process unless its main thread waits for the reason, or saves what is done."""
        if self._stopped.is_set():
            return
        self._reason = reason
        self._settled.set()
        if reason == _INTERRUPTED:
            signal.raise_signal(signal.SIGTERM)  # whoever was not asked to end is so now
        elif not self._broken.is_set():
            self._exit(reason)

    def _exit(self, reason: str) -> NoReturn:
        with suppress(OSError):
            self._on_lost(reason)
        self._spread(reason)
        os._exit(1)
