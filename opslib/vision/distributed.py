"""Processes that train one model together: who they are, what they exchange, and how a lost one is noticed.

A launcher (`torchrun`, SageMaker's `Torchrun`) starts the same program in several processes and tells each its RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A program that nobody launched is a group of one, for which every exchange
here is nothing at all.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from opslib.errors import ConfigurationError, HostLost
from opslib.vision.threads import usable_cores

LOST_AFTER_SECONDS = 10.0
"""A process that has not been heard of for so long is lost; a living one says something every second."""

_BEAT_SECONDS = 1.0
_JOIN_TIMEOUT = timedelta(minutes=5)
_EXCHANGE_TIMEOUT = timedelta(hours=2)
"""How long one process may be ahead of another; a lost one is noticed by its silence, much earlier."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: Its number, from 0.
        world_size: How many there are.
        host: Name of its host.
        local_world_size: How many of them share this host.
    """

    rank: int = 0
    world_size: int = 1
    host: str = "localhost"
    local_world_size: int = 1

    @property
    def is_writer(self) -> bool:
        """Whether this is the one process that writes what all of them made."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """The number of this host's cores that are for this process."""
        return max(1, usable_cores() // self.local_world_size)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order; any object that can be pickled.

        Raises:
            HostLost: A rank is gone.
        """
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        with _loss_explained():
            distributed.all_gather_object(values, value)
        return values

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by its sum over all ranks, bit for bit the same on each, and return it.

        Raises:
            HostLost: A rank is gone.
        """
        if self.world_size > 1:
            with _loss_explained():
                distributed.all_reduce(tensor)
        return tensor

    def share(self, value: Any) -> Any:
        """Return the value of rank 0.

        Raises:
            HostLost: A rank is gone.
        """
        if self.world_size == 1:
            return value
        values = [value]
        with _loss_explained():
            distributed.broadcast_object_list(values)
        return values[0]


@contextmanager
def joined_ranks(environment: Mapping[str, str], on_lost: Callable[[str], None]) -> Iterator[Ranks]:
    """Join the other processes for the length of a block.

    Args:
        environment: The launcher's variables.
        on_lost: Called from another thread with the reason when a rank is lost. The process ends right after with
            exit code 1, because its main thread may wait in an exchange that never comes back.

    Raises:
        ConfigurationError: The launcher's variables are incomplete.
        HostLost: The others did not come within five minutes.
    """
    ranks = read_ranks(environment)
    if ranks.world_size == 1:
        yield ranks
        return
    store = _join(ranks)
    watch = _Watch(ranks, store.clone(), on_lost)
    try:
        watch.start(ranks.gather(ranks.host))
        yield ranks
        ranks.gather("done")  # nobody leaves before everybody has what it needs
    finally:
        watch.stop()
    ranks.gather("not watching")  # only now may rank 0, which may hold the store, go
    distributed.destroy_process_group()


def read_ranks(environment: Mapping[str, str]) -> Ranks:
    """Return what a launcher says of this process; a group of one without WORLD_SIZE.

    Raises:
        ConfigurationError: A variable is missing or no number.
    """
    if "WORLD_SIZE" not in environment:
        return Ranks(host=environment.get("SM_CURRENT_HOST", "localhost"))
    try:
        rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_world_size = int(environment.get("LOCAL_WORLD_SIZE", "1"))
        if world_size > 1:
            environment["MASTER_ADDR"], environment["MASTER_PORT"]
    except (KeyError, ValueError) as error:
        raise ConfigurationError(
            f"WORLD_SIZE is set, but the launcher's variables are not complete: {error}",
            hint="start it with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT",
        ) from error
    return Ranks(rank, world_size, environment.get("SM_CURRENT_HOST") or socket.gethostname(), local_world_size)


def _join(ranks: Ranks) -> distributed.Store:
    """Form the process group, over GPUs' own network where there are any; return the store that it met at."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        store, _, _ = next(distributed.rendezvous("env://", timeout=_JOIN_TIMEOUT))
        distributed.init_process_group(
            f"cpu:gloo,cuda:{backend}" if backend == "nccl" else backend,
            store=distributed.PrefixStore("group", store),
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=_EXCHANGE_TIMEOUT,
        )
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise HostLost(
            f"rank {ranks.rank} on {ranks.host} could not meet the other {ranks.world_size - 1}: {error}",
            hint="one of the hosts did not start; its own log says why",
        ) from error
    return store


@contextmanager
def _loss_explained() -> Iterator[None]:
    """Turn torch's error about a closed connection into ours; the watch, a moment later, knows whose it was."""
    try:
        yield
    except RuntimeError as error:
        # torch's words begin with its source file and end with good wishes.
        words = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise HostLost(
            f"another process that trains with this one is gone: {words}",
            hint="the log of the host that ended first says why",
        ) from error


class _Watch:
    """Says once a second that this rank lives, and listens to the others."""

    def __init__(self, ranks: Ranks, store: distributed.Store, on_lost: Callable[[str], None]) -> None:
        self._ranks, self._store, self._on_lost = ranks, store, on_lost
        self._hosts: list[str] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self, hosts: list[str]) -> None:
        self._hosts = hosts
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        heard = {rank: (0, time.monotonic()) for rank in range(self._ranks.world_size) if rank != self._ranks.rank}
        while not self._stopped.wait(_BEAT_SECONDS):
            try:
                self._store.add(f"beat/{self._ranks.rank}", 1)
                beats = {rank: self._store.add(f"beat/{rank}", 0) for rank in heard}
            except RuntimeError as error:
                self._end(0, f"the place where all meet is gone with it ({str(error).partition('. ')[0]})")
                return
            now = time.monotonic()
            heard = {rank: (beats[rank], now if beats[rank] > count else at) for rank, (count, at) in heard.items()}
            for rank, (_, at) in heard.items():
                if now - at > LOST_AFTER_SECONDS:
                    self._end(rank, f"nothing was heard of it for {LOST_AFTER_SECONDS:.0f} s")
                    return

    def _end(self, rank: int, reason: str) -> None:
        if self._stopped.is_set():
            return
        with suppress(OSError):
            self._on_lost(f"rank {rank} on {self._hosts[rank]} was lost: {reason}")
        os._exit(1)
