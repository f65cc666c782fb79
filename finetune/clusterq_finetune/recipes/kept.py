"""Storage of a running distillation's records and states: in memory, or in a run's folder."""

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_common.run.checkpoint import load_checkpoint, restoring, save_checkpoint
from clusterq_common.run.metrics import MetricsLog, as_numbers, refuse_infinite
from clusterq_common.run.run_folder import CHECKPOINT, METRICS
from clusterq_common.setting_names import setting_name
from clusterq_finetune.recipes.distillation import Distillation


class Records:
    """Records in a list, without states, so that an interrupted run is lost.

    Attributes:
        records: one for each step, and one for each measurement on held-out images.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def begin(self, run: Distillation) -> None:
        """Prepare for the first step, and restore a stored state into `run`, if there is one."""

    def add(self, records: list[dict[str, Any]]) -> None:
        """Store records that are plain numbers."""
        self.records += records

    def add_steps(self, records: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
        """Store the values of steps. Returns them as plain numbers.

        Raises:
            ClusterqError: a value is not finite.
        """
        numbers = as_numbers(records)
        self.add(numbers)
        refuse_infinite(numbers, f"try a smaller {setting_name('lr')}.")
        return numbers

    def state(self, run: Distillation, *, last: bool) -> None:
        """Store the state, after the records of the same steps. `last`: no step follows."""

    def close(self) -> None:
        """Close the storage."""


class InFolder(Records):
    """Storage in a run's folder, as metrics.jsonl and checkpoints. Of several processes, the first one writes.

    Args:
        folder: folder of the run.
        resume: continue from the checkpoint in the folder, if there is one.
        tensorboard: also write TensorBoard events.
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
        """Restore the checkpoint, and drop the records of steps that will be repeated."""
        if self.resume and self.checkpoint.is_file():
            with restoring(self.checkpoint):
                run.load_state_dict(load_checkpoint(self.checkpoint, run.device))
        self._log = MetricsLog(self.metrics, keep_before_step=run.step, tensorboard=self.tensorboard)
        self._last_save = time.monotonic()

    def add(self, records: list[dict[str, Any]]) -> None:
        """Append records to the file."""
        self.log.append(records)

    def add_steps(self, records: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
        """Append the values of steps to the file. Returns them as plain numbers.

        Raises:
            ClusterqError: a value is not finite.
        """
        return self.log.append_step_values(records, self.checkpoint)

    def state(self, run: Distillation, *, last: bool) -> None:
        """Save a checkpoint if the last one is old enough, or if no step follows."""
        if last or time.monotonic() - self._last_save >= run.config.recipe.checkpoint_seconds:
            if Ranks.current().first:
                save_checkpoint(self.checkpoint, run.state_dict())
            self._last_save = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()
