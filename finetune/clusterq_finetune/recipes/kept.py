"""Where a distillation's records and states go while it runs: into memory, or into a run's folder."""

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_common.run.checkpoint import load_checkpoint, restoring, save_checkpoint
from clusterq_common.run.metrics import MetricsLog, as_numbers, refuse_infinite
from clusterq_common.run.run_folder import CHECKPOINT, METRICS
from clusterq_finetune.recipes.distillation import Distillation


class Records:
    """Records in a list, and no state: what is interrupted is gone.

    Attributes:
        records: one for each step, and one for each look at the held-out images.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def begin(self, run: Distillation) -> None:
        """Before the first step: `run` takes over what was kept of it, if anything."""

    def add(self, records: list[dict[str, Any]]) -> None:
        """Keep records that are plain numbers."""
        self.records += records

    def add_steps(self, records: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
        """Keep what steps returned; returns it as plain numbers.

        Raises:
            ClusterqError: a value is not finite.
        """
        numbers = as_numbers(records)
        self.add(numbers)
        refuse_infinite(numbers, "try a smaller --lr.")
        return numbers

    def state(self, run: Distillation, *, last: bool) -> None:
        """Records up to here are kept; this is the moment to keep the state, too. `last`: no step is to come."""

    def close(self) -> None:
        """Nothing more is to be kept."""


class InFolder(Records):
    """metrics.jsonl and checkpoints of a run; of several processes the first one writes.

    Args:
        folder: the run's.
        resume: go on from the checkpoint in it, where there is one.
        tensorboard: write TensorBoard's events, too.
    """

    def __init__(self, folder: Path, *, resume: bool, tensorboard: bool) -> None:
        super().__init__()
        self.checkpoint, self.metrics = folder / CHECKPOINT, folder / METRICS
        self.resume, self.tensorboard = resume, tensorboard
        self._last_save = time.monotonic()
        self._log: MetricsLog | None = None

    @property
    def log(self) -> MetricsLog:
        """The open metrics.jsonl."""
        assert self._log is not None, "begin comes first"
        return self._log

    def begin(self, run: Distillation) -> None:
        """Take over the checkpoint, and drop the records of steps that will be made again."""
        if self.resume and self.checkpoint.is_file():
            with restoring(self.checkpoint):
                run.load_state_dict(load_checkpoint(self.checkpoint, run.device))
        self._log = MetricsLog(self.metrics, keep_before_step=run.step, tensorboard=self.tensorboard)
        self._last_save = time.monotonic()

    def add(self, records: list[dict[str, Any]]) -> None:
        """Append them to the file."""
        self.log.append(records)

    def add_steps(self, records: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
        """Append them to the file; returns them as plain numbers.

        Raises:
            ClusterqError: a value is not finite.
        """
        return self.log.append_step_values(records, self.checkpoint)

    def state(self, run: Distillation, *, last: bool) -> None:
        """Save a checkpoint where the last one is old enough, or nothing comes after."""
        if last or time.monotonic() - self._last_save >= run.config.recipe.checkpoint_seconds:
            if Ranks.current().first:
                save_checkpoint(self.checkpoint, run.state_dict())
            self._last_save = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()
