"""Run a function in several processes that torchrun might have started."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing

# One server for each test process has imported these and forks the processes: a fresh one would spend seconds on imports.
PRELOADED = ["torch", "torch.distributed", "clusterq_finetune.commands", "clusterq_gen.commands"]
PRELOADED += ["torch._dynamo"]  # an optimizer's first step imports it
PRELOADED += ["pytest", "hypothesis"]  # the tests' modules import them


def in_processes(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(*arguments)` in `world` processes, each with torchrun's environment variables; a failure in one fails here.

    `function` has to be importable: at the top level of a test module.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    # The server has the environment with which it began; a test's own may have changed since.
    given = (world, port, dict(os.environ), function, arguments)
    torch.multiprocessing.start_processes(_one, given, nprocs=world, start_method="forkserver")


def _one(
    rank: int, world: int, port: int, environment: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ |= environment | {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    function(*arguments)
