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
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from opslib.errors import ConfigurationError, HostLost
from opslib.vision.heartbeat import Watch
from opslib.vision.threads import usable_cores

_JOIN_TIMEOUT = timedelta(minutes=5)
_EXCHANGE_TIMEOUT = timedelta(hours=2)
"""How long one process may be ahead of another; a lost one is noticed by its silence, much earlier."""
_LEAVING_SECONDS = 3.0
_LEAVING_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: Its number, from 0.
        world_size: How many there are.
        host: Name of its host.
        local_world_size: How many of them share this host.
        watch: Who notices that another one is gone.
    """

    rank: int = 0
    world_size: int = 1
    host: str = "localhost"
    local_world_size: int = 1
    watch: Watch | None = field(default=None, repr=False, compare=False)

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
        with self._loss_explained():
            distributed.all_gather_object(values, value)
        return values

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by its sum over all ranks, bit for bit the same on each, and return it.

        Raises:
            HostLost: A rank is gone.
        """
        if self.world_size > 1:
            with self._loss_explained():
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
        with self._loss_explained():
            distributed.broadcast_object_list(values)
        return values[0]

    def _loss_explained(self) -> AbstractContextManager[None]:
        return self.watch.loss_explained() if self.watch else nullcontext()


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
    store, hosts = _meet(ranks)
    watch = Watch(ranks.rank, hosts, store.clone(), on_lost)
    ranks = replace(ranks, watch=watch)
    try:
        with watch.loss_explained():
            _connect(ranks, store)
        yield ranks
        ranks.gather("done")  # nobody leaves before everybody has what it needs
    except BaseException as error:
        watch.tell(error)
        watch.stop()
        if ranks.is_writer:  # it may hold the store: the others must have time to read the reason
            time.sleep(_LEAVING_SECONDS)
        raise
    watch.stop()
    _leave(ranks, store)


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


def _meet(ranks: Ranks) -> tuple[distributed.Store, list[str]]:
    """Return the store at which all ranks met, and the names of their hosts."""
    try:
        store, _, _ = next(distributed.rendezvous("env://", timeout=_JOIN_TIMEOUT))
        store.set(f"host/{ranks.rank}", ranks.host)
        return store, [store.get(f"host/{rank}").decode() for rank in range(ranks.world_size)]
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise HostLost(
            f"rank {ranks.rank} on {ranks.host} could not meet the other {ranks.world_size - 1}: {error}",
            hint="one of the hosts did not start; its own log says why",
        ) from error


def _connect(ranks: Ranks, store: distributed.Store) -> None:
    """Form the process group, over GPUs' own network where there are any."""
    # gloo takes the address of the host's own name, or loopback if that has none, and then no other host is reached.
    # A training job is told the right interface; the SDK's torchrun driver passes it on to NCCL only.
    interface = os.environ.get("SM_NETWORK_INTERFACE_NAME")
    if interface in {name for _, name in socket.if_nameindex()}:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(
        backend,
        store=distributed.PrefixStore("group", store),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=_EXCHANGE_TIMEOUT,
    )


def _leave(ranks: Ranks, store: distributed.Store) -> None:
    """Leave the group when all do: rank 0, which may hold the store, should go last; but wait for nobody for long."""
    # A store that stands still never answers. What this process had to do is done, so that is no failure.
    impatience = threading.Timer(3 * _LEAVING_SECONDS, os._exit, (0,))
    impatience.daemon = True
    impatience.start()
    with suppress(RuntimeError):  # the store is gone, and rank 0 with it
        left, until = store.add("left", 1), time.monotonic() + _LEAVING_SECONDS
        while left < ranks.world_size and time.monotonic() < until:
            time.sleep(_LEAVING_LOOK_SECONDS)
            left = store.add("left", 0)
    distributed.destroy_process_group()
    impatience.cancel()
