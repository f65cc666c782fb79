"""metrics.jsonl: one JSON object a line, appended as a run goes on. `records.py` reads it."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_common.device.reduce import mean_across
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write, open_to_append
from clusterq_common.run.records import read_metrics
from clusterq_common.run.run_folder import TENSORBOARD
from clusterq_common.run.tensorboard import EventFiles
from clusterq_common.setting_names import in_a_command, setting_name


class MetricsLog:
    """Writer of records. On resume, it first drops records later than the checkpoint, whose steps are repeated.

    Of several processes the first one writes, and what it writes are means over all of them.

    Args:
        path: metrics.jsonl of a run.
        keep_before_step: records from this step on are dropped.
        tensorboard: write TensorBoard's events beside it, too.
    """

    def __init__(self, path: Path, *, keep_before_step: int = 0, tensorboard: bool = False) -> None:
        self.path = path
        self.ranks = Ranks.current()
        self.events: EventFiles | None = None
        if not self.ranks.first:
            return
        kept = _records_before(path, keep_before_step) if path.is_file() else []
        atomic_write(path, "".join(_line(record) for record in kept))
        if tensorboard:
            self.events = EventFiles(path.parent / TENSORBOARD)
            self.events.add(kept)

    def append_step_values(self, records: list[dict[str, Tensor | float]], checkpoint: Path) -> list[dict[str, float]]:
        """Fetch records from the device in one transfer, write them, and check them; returns them as plain numbers.

        Args:
            records: scalars by name, each record with a `step`.
            checkpoint: named in the error: what the user can go back to.

        Raises:
            ClusterqError: a value is not finite.
        """
        plain = as_numbers(records)
        self.append(plain)
        good = f"the last good checkpoint is {checkpoint}" if checkpoint.is_file() else "no checkpoint exists yet"
        restart = in_a_command(f" with {setting_name('overwrite')}")
        refuse_infinite(plain, f"{good}: try a smaller {setting_name('lr')}{restart}.")
        return plain

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write records, each with at least a `step`; the first process does it."""
        if not self.ranks.first:
            return
        with open_to_append(self.path) as file:
            file.write("".join(_line(record) for record in records))
        if self.events is not None:
            self.events.add(records)

    def close(self) -> None:
        """Close the file."""
        if self.events is not None:
            self.events.close()


def _records_before(path: Path, step: int) -> list[dict[str, Any]]:
    records = read_metrics(path, advice=f"use {setting_name('overwrite')} to start anew")
    return [record for record in records if record["step"] < step]


def as_numbers(records: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
    """Return records of scalars as plain numbers, means over all processes, fetched from the device in one transfer."""
    tensors = [value for record in records for value in record.values() if isinstance(value, Tensor)]
    numbers = iter(mean_across(torch.stack(tensors)).tolist()) if tensors else iter(())
    return [{k: next(numbers) if isinstance(v, Tensor) else v for k, v in record.items()} for record in records]


def refuse_infinite(records: list[dict[str, float]], advice: str) -> None:
    """Raise an error if a value of some steps is not finite.

    Raises:
        ClusterqError: one is not; `advice` is the end of the sentence.
    """
    for record in records:
        for key, value in record.items():
            if not math.isfinite(value):
                raise ClusterqError(f"{key} became {value} at step {record['step']:.0f}, expected a finite number; {advice}")


def _line(record: dict[str, Any]) -> str:
    # JSON has no NaN; a value that is not finite is written as null.
    clean = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()}
    return json.dumps(clean) + "\n"
