"""Storage of a training's records and states while it runs: in memory, or in a run's folder.

Generator training and distillation use it. A reconstruction has no records of steps, and its checkpoint is a finished block.
"""

import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_common.run.checkpoint import load_checkpoint, restoring, save_checkpoint
from clusterq_common.run.metrics import MetricsLog, as_numbers, refuse_infinite
from clusterq_common.run.run_folder import CHECKPOINT, METRICS
from clusterq_common.setting_names import setting_name

# Steps between two writes. Values are fetched from the device, checked and written together.
STEPS_BETWEEN_RECORDS = 25


class Resumable(Protocol):
    """A training whose state can be stored.

    Attributes:
        step: steps taken.
    """

    step: int
    device: torch.device

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a run with the same settings."""
        ...


class Records:
    """Records in a list, without states, so that an interrupted run is lost.

    Attributes:
        records: one for each step, and one for each measurement on held-out images.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Tensor | float]] = []

    def begin(self, run: Resumable) -> None:
        """Prepare for the first step, and restore a stored state into `run`, if there is one."""

    def add(self, records: list[dict[str, Any]]) -> None:
        """Store records that are plain numbers."""
        self.records += records

    def add_step(self, values: dict[str, Tensor | float], *, now: bool) -> dict[str, float] | None:
        """Take a step's values, which are stored together with those of the steps around it.

        Args:
            values: scalars by name, on the device.
            now: store them now, as at the end of an epoch.

        Returns:
            The step's values as plain numbers where they were stored, else None.

        Raises:
            ClusterqError: a value is not finite.
        """
        self._waiting.append(values)
        if not now and len(self._waiting) < STEPS_BETWEEN_RECORDS:
            return None
        waiting, self._waiting = self._waiting, []
        return self._store(waiting)[-1]

    def _store(self, records: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
        """Store the values of steps. Returns them as plain numbers."""
        numbers = as_numbers(records)
        self.add(numbers)
        refuse_infinite(numbers, f"try a smaller {setting_name('lr')}.")
        return numbers

    def state(self, run: Resumable, *, last: bool) -> None:
        """Store the state after the records of the same steps. `last` means that no step follows."""

    def close(self) -> None:
        """Close the storage."""


class InFolder(Records):
    """Storage in a run's folder, as metrics.jsonl and checkpoints. Of several processes, the first one writes.

    Args:
        folder: folder of the run.
        resume: continue from the checkpoint in the folder, if there is one.
        tensorboard: also write TensorBoard events.
        checkpoint_seconds: least time between two checkpoints.
    """

    def __init__(self, folder: Path, *, resume: bool, tensorboard: bool, checkpoint_seconds: float) -> None:
        super().__init__()
        self.checkpoint, self.metrics = folder / CHECKPOINT, folder / METRICS
        self.resume, self.tensorboard, self.checkpoint_seconds = resume, tensorboard, checkpoint_seconds
        self._last_save = time.monotonic()
        self._log: MetricsLog | None = None

    @property
    def log(self) -> MetricsLog:
        """Open metrics.jsonl."""
        assert self._log is not None, "begin comes first"
        return self._log

    def begin(self, run: Resumable) -> None:
        """Restore the checkpoint, and drop the records of steps that will be repeated."""
        if self.resume and self.checkpoint.is_file():
            with restoring(self.checkpoint):
                run.load_state_dict(load_checkpoint(self.checkpoint, run.device))
        self._log = MetricsLog(self.metrics, keep_before_step=run.step, tensorboard=self.tensorboard)
        self._last_save = time.monotonic()

    def add(self, records: list[dict[str, Any]]) -> None:
        """Append records to the file."""
        self.log.append(records)

    def _store(self, records: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
        return self.log.append_step_values(records, self.checkpoint)

    def state(self, run: Resumable, *, last: bool) -> None:
        """Save a checkpoint if the last one is old enough, or if no step follows."""
        if last or time.monotonic() - self._last_save >= self.checkpoint_seconds:
            if Ranks.current().first:
                save_checkpoint(self.checkpoint, run.state_dict())
            self._last_save = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()
