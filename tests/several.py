"""Run a function in several processes that torchrun might have started."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing


def in_processes(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(*arguments)` in `world` processes, each with torchrun's environment variables; a failure in one fails here.

    `function` has to be importable: at the top level of a test module.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_one, (world, port, function, arguments), nprocs=world)


def _one(rank: int, world: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    function(*arguments)
