"""Command lines in processes of their own that start at once: forked from one that has imported everything already."""

import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Collection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from torch import nn

from clusterq_finetune.cli.main import app as finetune_app
from clusterq_gen.cli import app as gen_app

APPS = {"gen": gen_app, "finetune": finetune_app}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__, "clusterq_gen.commands", "clusterq_finetune.commands"])
# In the server too, before any work: a process that has threads must not be forked.
torch.set_num_threads(1)
# The first optimizer imports the half of torch that `import torch` leaves out.
torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1)


def start(program: str, arguments: list[str], messages: Path) -> ForkServerProcess:
    """Start `clusterq-gen` or `clusterq-finetune`; what it says goes to the file `messages`."""
    process = SERVER.Process(target=_run, args=(program, arguments, messages), daemon=True)
    process.start()
    return process


def start_deadly(program: str, arguments: list[str], messages: Path, run: Path, survived: Collection[str]) -> ForkServerProcess:
    """The same, but it dies of SIGKILL when a file of `run` is about to be published, or a folder removed, for the first time.

    That file's name, digits as #, is then in `run`'s neighbour `died-at`; files in `survived` do it no harm.
    """
    process = SERVER.Process(target=_run_deadly, args=(program, arguments, messages, run, survived), daemon=True)
    process.start()
    return process


def _run(program: str, arguments: list[str], messages: Path) -> None:
    with messages.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    APPS[program](arguments)


def _run_deadly(program: str, arguments: list[str], messages: Path, run: Path, survived: Collection[str]) -> None:
    def die(event: str, values: tuple[object, ...]) -> None:
        if event not in {"os.rename", "shutil.rmtree"}:
            return
        path = Path(str(values[1 if event == "os.rename" else 0]))
        if not path.is_relative_to(run):
            return
        name = re.sub(r"\d", "#", str(path.relative_to(run)))
        if name not in survived:
            run.with_name("died-at").write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    _run(program, arguments, messages)
