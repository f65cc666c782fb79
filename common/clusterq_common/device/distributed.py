"""Several processes, as torchrun starts them: which one this is, what each takes of a batch, and how they wait for each other."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed

from clusterq_common.errors import ClusterqError

# The slowest process may be writing its last shard while the others wait.
PATIENCE = timedelta(hours=12)

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all: `rank` in [0, world)."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Those of the running process group; alone outside `process_group`."""
        if not torch.distributed.is_initialized():
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what exists once."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of a batch of `count`: contiguous, and as large as everyone else's within one."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world > 1:
            with peers_alive():
                torch.distributed.barrier()

    def from_first(self, action: Callable[[], T]) -> T:
        """Let the first process alone do something; every process gets what it returned (anything that pickle can carry)."""
        if self.world == 1:
            return action()
        box: list[Any] = [action() if self.first else None]
        with peers_alive():
            torch.distributed.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def gather(self, value: T) -> list[T]:
        """Every process's `value`, in the order of ranks, for every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with peers_alive():
            torch.distributed.all_gather_object(values, value)
        return values


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that torchrun started (its environment variables say so); alone without it.

    Raises:
        ClusterqError: some of those variables are there and others not.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        yield Ranks()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ClusterqError(
            f"the environment has WORLD_SIZE={world} but no {missing[0]}, expected all of torchrun's variables; start with torchrun, or "
            "unset WORLD_SIZE."
        )
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield Ranks.current()
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def peers_alive() -> Iterator[None]:
    """Around a collective: when another process is gone, say so in a sentence; its own message tells why.

    Raises:
        ClusterqError: the collective failed.
    """
    try:
        yield
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        raise ClusterqError(
            f"process {Ranks.current().rank}: another process of this job has ended ({first_line[:120]}); its own message says why, "
            "and --resume goes on from the last checkpoint."
        ) from error
