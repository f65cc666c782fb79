"""Data of a run folder, read with care: it may be unfinished, old, broken or a stranger's. Free of torch."""

import io
import math
import sys
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clusterq_common.documents import read_json
from clusterq_common.errors import ClusterqError
from clusterq_common.run.records import read_metrics
from clusterq_common.run.run_folder import ANALYSIS, BENCHMARK, CONFIG, ENVIRONMENT, METRICS, PREDICTIONS, RESULT, SHARDS, TABLE
from clusterq_common.settings import read_yaml
from clusterq_common.shards.manifest import MANIFEST, Manifest, read_manifest

# Far above what any run writes: a file beyond it was made to fill the memory.
LARGEST_FILE = 1 << 28
# Arrays of predictions.npz with several values an image.
PROBABILITIES = ("_top5_classes", "_probabilities")
Kind = Literal["generator", "fine-tuning", "comparison"]
Ints = np.ndarray[Any, np.dtype[np.int64]]
# (x, y), y None where it was not finite.
Points = list[tuple[float, float | None]]


@dataclass(frozen=True)
class Source:
    """A folder, and what is found in it; each part is read when it is asked for.

    Attributes:
        folder: the run's.
        kind: what wrote it.
        config: its config.yaml; empty for a comparison.
    """

    folder: Path
    kind: Kind
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Source":
        """Find out what a folder is.

        Raises:
            ClusterqError: it is none of the three.
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
        try:
            records = read_metrics(path)
        except (ValueError, RecursionError) as error:
            raise ClusterqError(
                f"{path} has a line that is no JSON ({type(error).__name__}), expected one object a line; get the run again."
            ) from error
        return [record for record in records if isinstance(record, dict) and real(record.get("step")) is not None]

    @cached_property
    def manifest(self) -> Manifest | None:
        """Of the run's own shards, or of those that it learned from, where they still are what they were.

        Raises:
            ClusterqError: a manifest that is none.
        """
        if not (self.shards / MANIFEST).is_file():
            return None
        manifest = read_manifest(self.shards)
        digest = section(self.result.get("shards")).get("digest")
        return manifest if digest is None or digest == manifest.digest else None

    @cached_property
    def steps(self) -> dict[str, Points]:
        """Values that metrics.jsonl records of each step, by name."""
        return columns([record for record in self.metrics if "epoch" not in record], "step")

    @cached_property
    def epochs(self) -> dict[str, Points]:
        """And of each epoch."""
        return columns([record for record in self.metrics if "epoch" in record], "epoch")

    @cached_property
    def steps_done(self) -> int:
        """Number of steps on record."""
        return len({record["step"] for record in self.metrics})

    @property
    def shards(self) -> Path:
        """The folder of shards that the run made, or learned from."""
        if self.kind == "generator":
            return self.folder / SHARDS
        named = self.config.get("shards")
        return Path(named) if isinstance(named, str) else self.folder / SHARDS

    @cached_property
    def predictions(self) -> dict[str, Ints]:
        """Classes by image and model, (N,) int64, `label` among them; empty where no real image was looked at.

        Raises:
            ClusterqError: predictions.npz is not what an evaluation writes.
        """
        return {name: array for name, array in self._arrays.items() if array.dtype.kind == "i"}

    @cached_property
    def image_names(self) -> list[str]:
        """Names of the images that `predictions` is about."""
        names = self._arrays.get("name")
        return [] if names is None else [str(name) for name in names]

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        path = self.folder / PREDICTIONS
        if not path.is_file():
            return {}
        try:
            with zipfile.ZipFile(path) as packed:
                sizes = {member.filename.removesuffix(".npy"): member.file_size for member in packed.infolist()}
                # Probabilities are many, and no page shows them: they are left where they lie.
                wanted = [name for name in sizes if not name.endswith(PROBABILITIES)]
                if sum(sizes[name] for name in wanted) > LARGEST_FILE:
                    raise ValueError("it unpacks to more than any evaluation writes")
                arrays = {name: _array(packed.read(f"{name}.npy")) for name in wanted}
            lengths = {array.shape for array in arrays.values()}
            kinds = {name: array.dtype.kind for name, array in arrays.items()}
            if len(lengths) != 1 or len(next(iter(lengths))) != 1 or kinds.get("label") != "i" or kinds.get("name") != "U":
                raise ValueError("expected arrays of one length, name and label among them")
            arrays["name"] = np.array([str(name) for name in arrays["name"]])
        # zipfile raises NotImplementedError or RuntimeError for an archive packed in a way that it does not know.
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise ClusterqError(
                f"{path} is not what an evaluation writes ({error}), expected arrays name and label and one a model; evaluate again."
            ) from error
        return {name: array.astype(np.int64) if kinds[name] == "i" else array for name, array in arrays.items()}

    def _json(self, name: str) -> Any:
        path = self.folder / name
        return read_json(path, what="what a run writes", deepest=None) if path.is_file() else None


def _array(data: bytes) -> np.ndarray[Any, Any]:
    """An array of numbers or text from the bytes of an .npy file, whose header must be about just these bytes.

    Raises:
        ValueError: it is none.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = header(stream)
    except Exception as error:  # numpy's header parser lets tokenizer and recursion errors through
        raise ValueError(f"an array's header is broken ({type(error).__name__})") from error
    values = data[stream.tell() :]
    if len(shape) != 1 or kind.kind not in "iU" or shape[0] * kind.itemsize != len(values):
        raise ValueError(f"an array is {kind.kind}{shape} in {len(values)} bytes")
    if kind.kind == "U" and values and np.frombuffer(values, kind.byteorder + "u4").max() > sys.maxunicode:
        raise ValueError("an array of text holds what is no character")
    return np.frombuffer(values, kind).copy() if values else np.zeros(shape, kind)


def section(value: Any, *keys: str) -> dict[str, Any]:
    """A dictionary inside dictionaries; empty where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    """The dictionaries of a list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def real(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def reals(value: Any) -> list[float | None]:
    """A list of numbers, None where one is missing; empty where it is no list."""
    return [real(one) for one in value] if isinstance(value, list) else []


def columns(records: list[dict[str, Any]], at: str) -> dict[str, Points]:
    """Records by key: (record[at], value) of each that has both; None where a value was not finite."""
    found: dict[str, Points] = {}
    for record in records:
        x = real(record.get(at))
        if x is None:
            continue
        for key, value in record.items():
            y = real(value)
            if y is not None or value is None:
                found.setdefault(key, []).append((x, y))
    return found


def word(value: Any, otherwise: str = "–") -> str:
    """A name, a number or a flag as text. Of anything else not: YAML can fold gigabytes of nested lists into a few lines."""
    return str(value) if isinstance(value, str | int | float | bool) else otherwise


def pair(value: Any) -> tuple[float, float] | None:
    """Two numbers, as an interval has them."""
    found = reals(value)
    return (found[0], found[1]) if len(found) == 2 and found[0] is not None and found[1] is not None else None


def _refuse_large(path: Path) -> None:
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ClusterqError(f"{path} has {size} bytes, expected at most {LARGEST_FILE}; it is not what a run writes.")
