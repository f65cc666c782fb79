"""Several processes, as torchrun starts them: which one this is, and how they wait for each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed

from clusterq_common.runtime.errors import ClusterqError

# The slowest process may be writing its last shard while the others wait.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """This process among all: `rank` in [0, world)."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what exists once."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world > 1:
            torch.distributed.barrier()


def one_process(command: str) -> None:
    """Make sure that a command which runs alone was not started several times over.

    Raises:
        ClusterqError: torchrun started more than one process.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ClusterqError(
            f"{command}: torchrun started {world} processes, expected one; only `clusterq-gen emit` works in several, run the "
            "others without torchrun."
        )


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that torchrun started (its environment variables say so); alone without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()
