"""Several processes, as torchrun starts them: the rank of this one, its part of a batch, and synchronisation."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name

# The slowest process may be writing its last shard while the others wait.
PATIENCE = timedelta(hours=12)

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Rank of this process among all: `rank` in [0, world)."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Return the rank in the running process group; 0 of 1 outside `process_group`."""
        if not torch.distributed.is_initialized():
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def first(self) -> bool:
        """True for the first process, which writes files that exist once."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's part of a batch of `count`: contiguous; sizes differ by at most one between processes."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def wait(self) -> None:
        """Wait until every process has reached this call."""
        if self.world > 1:
            with peers_alive():
                torch.distributed.barrier()

    def from_first(self, action: Callable[[], T]) -> T:
        """Run an action in the first process only. Every process gets its result, which must be picklable."""
        if self.world == 1:
            return action()
        box: list[Any] = [action() if self.first else None]
        with peers_alive():
            torch.distributed.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def gather(self, value: T) -> list[T]:
        """Return every process's `value`, in the order of ranks, in every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with peers_alive():
            torch.distributed.all_gather_object(values, value)
        return values


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the process group that torchrun started, as its environment variables say; a single process without it.

    Raises:
        ClusterqError: some of those variables are set and others not.
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
    """Turn the failure of a collective within the block into one sentence. The ended process's own message gives the reason.

    Raises:
        ClusterqError: the collective failed.
    """
    try:
        yield
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        raise ClusterqError(
            f"process {Ranks.current().rank}: another process of this job has ended ({first_line[:120]}); its own message says why, "
            f"and {setting_name('resume')} goes on from the last checkpoint."
        ) from error
