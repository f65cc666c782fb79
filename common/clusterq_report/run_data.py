"""Data of a run folder, read with care: it may be unfinished, old, broken or a stranger's. Free of torch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from clusterq_common.documents import read_json
from clusterq_common.errors import ClusterqError
from clusterq_common.run.records import read_metrics
from clusterq_common.run.run_folder import (
    ANALYSIS,
    BENCHMARK,
    CONFIG,
    ENVIRONMENT,
    LAYERS,
    METRICS,
    PREDICTIONS,
    RESULT,
    SHARDS,
    TABLE,
)
from clusterq_common.settings import read_yaml
from clusterq_common.shards.manifest import MANIFEST, Manifest, read_manifest
from clusterq_report.run_predictions import Ints, PredictionsFile

# Far above what any run writes: a file beyond it was made to fill the memory.
LARGEST_FILE = 1 << 28
Kind = Literal["generator", "fine-tuning", "comparison"]
# (x, y), y None where it was not finite.
Points = list[tuple[float, float | None]]


@dataclass(frozen=True)
class RunData:
    """Files of a run or of a comparison. Each is read on first use.

    Attributes:
        folder: folder of the run.
        kind: program that wrote it.
        config: content of config.yaml; empty for a comparison.
        page: the page that is drawn, where it lies elsewhere than in the folder.
    """

    folder: Path
    kind: Kind
    config: dict[str, Any] = field(default_factory=dict)
    page: Path | None = None

    @property
    def costs_csv(self) -> str:
        """Name of the table of layers that lies beside the page."""
        return LAYERS if self.page is None else f"{self.page.stem}-{LAYERS}"

    @classmethod
    def open(cls, folder: Path) -> "RunData":
        """Open a folder of any kind.

        Raises:
            ClusterqError: the folder is of none of the three kinds.
        """
        if not folder.is_dir():
            raise ClusterqError(f"{folder} is no folder, expected that of a run or of a comparison; name one that exists.")
        if (folder / CONFIG).is_file():
            config = read_yaml(folder / CONFIG, aliases=True)
            if "generator" in config:
                return cls(folder, "generator", config)
            if "recipe" in config or "shards" in config:
                return cls(folder, "fine-tuning", config)
            raise ClusterqError(
                f"{folder / CONFIG} has neither a section generator nor one called recipe, expected the config.yaml of a run; name its folder."
            )
        if (folder / TABLE).is_file():
            return cls(folder, "comparison")
        raise ClusterqError(
            f"{folder} holds neither {CONFIG} nor {TABLE}, expected the folder of a run of clusterq-gen or clusterq-finetune, or of "
            "tools/compare_methods.py; name one of those."
        )

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json; empty where the run is not finished."""
        return section(self._json(RESULT))

    @cached_property
    def environment(self) -> dict[str, Any]:
        """environment.json."""
        return section(self._json(ENVIRONMENT))

    @cached_property
    def analysis(self) -> dict[str, Any]:
        """analysis.json; empty where nothing was measured."""
        return section(self._json(ANALYSIS))

    @cached_property
    def benchmark(self) -> dict[str, Any]:
        """benchmark.json: speed of a file that the student was exported to; empty where none was measured."""
        return section(self._json(BENCHMARK))

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """table.json: the rows of a comparison."""
        return rows(self._json(TABLE))

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl that have a step.

        Raises:
            ClusterqError: a line is no JSON.
        """
        path = self.folder / METRICS
        if not path.is_file():
            return []
        _refuse_large(path)
        return [record for record in read_metrics(path) if real(record["step"]) is not None]

    @cached_property
    def manifest(self) -> Manifest | None:
        """Manifest of the shards that the run made or learned from; None where they are absent or have changed.

        Raises:
            ClusterqError: the manifest cannot be read.
        """
        if not (self.shards / MANIFEST).is_file():
            return None
        manifest = read_manifest(self.shards)
        digest = section(self.result.get("shards")).get("digest")
        return manifest if digest is None or digest == manifest.digest else None

    @cached_property
    def steps(self) -> dict[str, Points]:
        """Values recorded at each step, by name."""
        return columns([record for record in self.metrics if "epoch" not in record], "step")

    @cached_property
    def epochs(self) -> dict[str, Points]:
        """Values recorded once per epoch, by name."""
        return columns([record for record in self.metrics if "epoch" in record], "epoch")

    @cached_property
    def steps_done(self) -> int:
        """Number of steps on record."""
        return len({record["step"] for record in self.metrics})

    @property
    def shards(self) -> Path:
        """Folder of the shards that the run made, or learned from."""
        if self.kind == "generator":
            return self.folder / SHARDS
        named = self.config.get("shards")
        return Path(named) if isinstance(named, str) else self.folder / SHARDS

    @cached_property
    def predictions(self) -> dict[str, Ints]:
        """Classes by image and model, (N,) int64, `label` among them; empty if no real image was evaluated.

        Raises:
            ClusterqError: predictions.npz is not what an evaluation writes.
        """
        file = PredictionsFile(self.folder / PREDICTIONS)
        return file.classes() if file.path.is_file() else {}

    def image_names(self) -> Iterator[str]:
        """Names of the images that `predictions` is about, one after the other."""
        file = PredictionsFile(self.folder / PREDICTIONS)
        return file.names() if file.path.is_file() else iter(())

    def _json(self, name: str) -> Any:
        path = self.folder / name
        return read_json(path, what="what a run writes", deepest=None) if path.is_file() else None


def section(value: Any, *keys: str) -> dict[str, Any]:
    """Return a dictionary inside dictionaries; empty if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    """Return the dictionaries of a list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def real(value: Any) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def reals(value: Any) -> list[float | None]:
    """Return a list of numbers, with None for anything else; empty if the value is no list."""
    return [real(number) for number in value] if isinstance(value, list) else []


def columns(records: list[dict[str, Any]], at: str) -> dict[str, Points]:
    """Return records by key: (record[at], value) of each that has both; None for values that are not finite."""
    series: dict[str, Points] = {}
    for record in records:
        x = real(record.get(at))
        if x is None:
            continue
        for key, value in record.items():
            y = real(value)
            if y is not None or value is None:
                series.setdefault(key, []).append((x, y))
    return series


def word(value: Any, otherwise: str = "–") -> str:
    """Return a name, a number or a flag as text, `otherwise` for any other value: YAML can fold gigabytes of nested lists into a few lines."""
    return str(value) if isinstance(value, str | int | float | bool) else otherwise


def pair(value: Any) -> tuple[float, float] | None:
    """Return two numbers, such as an interval's."""
    numbers = reals(value)
    return (numbers[0], numbers[1]) if len(numbers) == 2 and numbers[0] is not None and numbers[1] is not None else None


def _refuse_large(path: Path) -> None:
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ClusterqError(f"{path} has {size} bytes, expected at most {LARGEST_FILE}; it is not what a run writes.")
