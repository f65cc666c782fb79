"""Curves from the table of one analysis (tools/analyses.py) or comparison. Free of torch and of matplotlib."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.run.run_folder import RESULT, TABLE
from clusterq_finetune.results import read_result
from clusterq_report.pages.comparison import written
from clusterq_report.run_data import RunData, word

# Name of a set whose setting is a number, as tools/analyses.py writes it: `ema-rate-0.2`.
VALUE = re.compile(r"(.+)-(\d+(?:\.\d+)?)")
# Axis labels of the settings that papers vary, with the flag on a second line.
MEANING = {
    "ema-rate": "rate b of the centroids' update\n(--ema-rate)",
    "alpha-de": "weight a₃ of diversity enhancement\n(--alpha-de)",
    "per-class": "training images of each class\n(--per-class)",
    "classes-per-batch": "classes in a batch\n(--classes-per-batch)",
}
STUDENT, TEACHER, AGAINST = "student", "teacher", "first set minus this"


@dataclass(frozen=True)
class Row:
    """Results for one setting.

    Attributes:
        name: name of the set.
        value: value of the setting, where it is a number.
        top1: percent, mean over seeds.
        std: standard deviation over seeds; None for a single seed.
        seeds: number of seeds.
        single: top-1 of each seed, where the students lie beside the table.
        gain: points above the first row, with the 95 % interval over images; None for the first row.
    """

    name: str
    value: float | None
    top1: float
    std: float | None
    seeds: int
    single: tuple[float, ...]
    gain: tuple[float, float, float] | None


@dataclass(frozen=True)
class Curve:
    """All settings at the same bits, protocol and recipe.

    Attributes:
        analysis: name of the table's folder.
        what: axis label of the setting; empty where sets differ by name alone.
        kind: bits, protocol and recipe.
        teacher: top-1 of the teacher, percent.
        rows: in order of the value, or of the table.
        first: name of the set that the others are compared with.
    """

    analysis: str
    what: str
    kind: str
    teacher: float | None
    rows: tuple[Row, ...]
    first: str


def read_curves(path: Path) -> list[Curve]:
    """Read curves from a folder with a table.json, or from the file itself.

    Raises:
        ClusterqError: there is no table, or it has other columns than tools/analyses.py writes.
    """
    folder = path.parent if path.name == TABLE else path
    if not (folder / TABLE).is_file():
        inside = sorted(path_inside.parent.name for path_inside in folder.glob(f"*/{TABLE}")) if folder.is_dir() else []
        hint = f"name one of {', '.join(inside)} in it" if inside else "run tools/analyses.py, or name its folder"
        raise ClusterqError(
            f"{path}: there is no {TABLE}, expected the folder of one analysis of tools/analyses.py or of a comparison; {hint}."
        )
    table = RunData(folder, "comparison").table
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table:
        kind = ", ".join(word(row.get(name), "") for name in ("bits", "protocol", "recipe"))
        groups.setdefault(kind, []).append(row)
    if not groups:
        raise ClusterqError(f"{folder / TABLE} has no row, expected what tools/analyses.py writes; run it again.")
    return [_curve(folder, kind, rows) for kind, rows in groups.items()]


def _curve(folder: Path, kind: str, table: Sequence[dict[str, Any]]) -> Curve:
    names = [word(row.get("set"), "") for row in table]
    matches = [VALUE.fullmatch(name) for name in names]
    settings = {match[1] for match in matches if match}
    numeric = len(settings) == 1 and all(matches) and len(table) > 1
    rows = [
        _row(folder, row, float(match[2]) if numeric and match else None, first=place == 0)
        for place, (row, match) in enumerate(zip(table, matches, strict=True))
    ]
    teacher = written(table[0].get(TEACHER))
    setting = next(iter(settings), "") if numeric else ""
    return Curve(
        analysis=folder.resolve().name,
        what=MEANING.get(setting, f"--{setting}") if setting else "",
        kind=kind,
        teacher=teacher[0] if teacher else None,
        rows=tuple(sorted(rows, key=lambda row: row.value or 0.0) if numeric else rows),
        first=names[0],
    )


def _row(folder: Path, row: dict[str, Any], value: float | None, *, first: bool) -> Row:
    accuracy, seeds = written(row.get(STUDENT)), row.get("seeds")
    if accuracy is None or not isinstance(seeds, int):
        raise ClusterqError(
            f"{folder / TABLE}: a row has {row.get(STUDENT)!r} as student and {seeds!r} as seeds, expected such as '91.17 ± 0.01' and 3, as "
            "tools/analyses.py writes them; run it again."
        )
    top1, around = accuracy
    apart = written(row.get(AGAINST))
    gain = None
    if not first and apart is not None and apart[1] is not None:
        gain = (-apart[0], -apart[1][1], -apart[1][0])
    return Row(
        name=word(row.get("set"), ""),
        value=value,
        top1=top1,
        std=around[1] - top1 if around else None,
        seeds=seeds,
        single=_single(folder, row, top1, seeds),
        gain=gain,
    )


def _single(folder: Path, row: dict[str, Any], mean: float, seeds: int) -> tuple[float, ...]:
    """Return the top-1 of each seed's student from the results beside the table, or nothing where they do not match the table."""
    name = "-".join(word(row.get(part), "") for part in ("set", "bits", "protocol", "recipe"))
    # Compared as text: a name from a file must not act as a pattern or lead out of the folder.
    students = [
        one / RESULT
        for one in sorted((folder / "students").glob("*"))
        if one.name.rpartition("-")[0] == name and (one / RESULT).is_file()
    ]
    values = [read_result(student)["student"].get("top1") for student in students]
    top1 = tuple(float(value) for value in values if isinstance(value, int | float))
    same = len(top1) == seeds and abs(sum(top1) / seeds - mean) < 0.006
    return top1 if same else ()
