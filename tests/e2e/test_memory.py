"""Memory does not grow over the steps of either program."""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterq_finetune.recipes.distillation import Distillation
from clusterq_gen.training import loop
from tests.conftest import Cli, DigitsTeacher

STEPS, SETTLED = 500, 150
# A step keeps about a megabyte while it lasts: one kept for good in a hundred steps would show.
ALLOWED_MIB = 4.0

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def give_back() -> None:
    """Return freed memory to the system, which glibc keeps for later: what other tests left would count as this one's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Watched:
    """Wraps what takes a step; resident memory and living objects are noted once caches are filled, and at the end."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step, self.count = step, 0
        self.resident: list[float] = []
        self.objects: list[int] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.step(*args, **kwargs)
        self.count += 1
        if self.count in {SETTLED, STEPS}:
            gc.collect()
            give_back()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.resident.append(pages * 4096 / 2**20)
            self.objects.append(len(gc.get_objects()))
        return result

    def check(self) -> None:
        assert len(self.resident) == 2, f"{self.count} steps"
        assert self.resident[1] - self.resident[0] < ALLOWED_MIB
        # What is recorded between two writes of metrics.jsonl comes and goes.
        assert self.objects[1] - self.objects[0] < 2000


def test_generator_training(digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(loop.train_step)
    monkeypatch.setattr(loop, "train_step", watched)
    sizes = ("--epochs", 10, "--steps-per-epoch", 50, "--warmup-epochs", 1, "--batch-size", 20, "--width", 16, "--per-class", 1)
    flags = (*digits_teacher.flags, "--preset", "quick", *sizes, "--bits", "w4a4")
    done = gen("train", *flags, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    watched.check()


def test_fine_tuning(digits_run: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(Distillation.take_step)
    monkeypatch.setattr(Distillation, "take_step", lambda *args, **kwargs: watched(*args, **kwargs))
    sizes = ("--epochs", 10, "--steps-per-epoch", 50, "--batch-size", 16)
    done = finetune("--shards", digits_run, "--bits", "w4a4", *sizes, "--augment", "flip", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    watched.check()
