"""Page of a comparison: a table's rows as bars with intervals, and the table."""

import re
from collections.abc import Sequence
from typing import Any

from clusterq_common.quantities import count, number
from clusterq_report.charts.bars import Bars, bar_chart, interval_chart
from clusterq_report.charts.svg import usable
from clusterq_report.html.blocks import Block, Figure, Table
from clusterq_report.html.page import Remark, Report, Section
from clusterq_report.pages import provenance
from clusterq_report.run_data import RunData, real, word

FIGURE = r"-?\d{1,9}(?:\.\d{1,9})?"
# Format of tools/compare/paired.py: `91.17 ± 0.01` over seeds, `0.85 [0.60, 1.10]` over images.
WRITTEN = re.compile(rf"({FIGURE})(?: ± ({FIGURE})| \[({FIGURE}), ({FIGURE})\])?")
# Column names by content, in compare_methods.py and in `clusterq-finetune compare`.
TEACHER, CALIBRATED, STUDENT = ("teacher top-1", "teacher"), ("calibrated top-1", "calibrated"), ("student top-1", "student")
BELOW, SPREAD = ("below teacher [95 %]", "below teacher"), "spread"
COST = (("set, CPU min",), ("student, CPU min",))
REPEATS = ("runs", "seeds")
# Columns that distinguish rows.
WORDS = ("set", "method", "bits", "first/last", "protocol", "quantizer", "sites", "recipe", "images")
FEW_SEEDS = 3

Value = tuple[float, tuple[float, float] | None]


def comparison_report(source: RunData) -> Report:
    """Return the page of a comparison by compare_methods.py, from its table.json."""
    tail = [
        Section("again", "Run it again", provenance.rerun_commands(source) if source.environment else []),
        Section("origins", "Origins", provenance.origins(source)),
    ]
    return rows_report(source.table, tail)


def rows_report(rows: Sequence[dict[str, Any]], tail: Sequence[Section] = ()) -> Report:
    """Return the page of a table with the columns of compare_methods.py or of `clusterq-finetune compare`.

    Args:
        rows: rows of the table.
        tail: sections at the end.
    """
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    labels = [_label(row, rows) for row in rows]
    listed = [[word(row.get(name), "") for name in names] for row in rows]
    words = max((place + 1 for place, name in enumerate(names) if name in WORDS[:-1]), default=1)
    sections = [
        Section("accuracy", "Accuracy", _accuracy(rows, labels), opened=True),
        Section("below", "Below the teacher", _below(rows, labels), opened=True),
        Section("cost", "Cost", _cost(rows, labels)),
        Section("table", "Table", [Table(names, listed, words=words, sortable=True)] if rows else []),
        *tail,
    ]
    repeats = {value[0] for row in rows if (value := _figure(row, REPEATS))}
    images = sorted(usable(real(row.get("images")) for row in rows))
    tiles = {"Rows": f"{len(rows)}"}
    tiles |= {"Runs of a row": ", ".join(number(n) for n in sorted(repeats))} if repeats else {}
    tiles |= {"Training images": ", ".join(dict.fromkeys(number(n) for n in images))} if images else {}
    best = max(
        ((value[0], label) for row, label in zip(rows, labels, strict=True) if (value := _figure(row, STUDENT))), default=None
    )
    lead = f"{count(len(rows), 'way')} to a low-bit student."
    lead += f" Highest top-1: {best[1]}, {best[0]:.2f} %." if best else ""
    return Report("Comparison of methods", lead, tiles, _remarks(rows, repeats), sections)


def _remarks(rows: Sequence[dict[str, Any]], repeats: set[float]) -> list[Remark]:
    remarks = [] if rows else [Remark("warning", "The table has no row.")]
    if repeats and min(repeats) < FEW_SEEDS:
        sentence = f"Rows of {count(min(repeats), 'run')}: how much chance there is between seeds is not known;"
        remarks.append(Remark("warning", f"{sentence} three or more tell."))
    if any("first set minus this" in row for row in rows):
        sentence = "Two rows differ beyond chance of the images if their paired difference (first set minus this) leaves out 0; seeds add their own."
        remarks.append(Remark("plain", sentence))
    return remarks


def _figure(row: dict[str, Any], columns: Sequence[str]) -> Value | None:
    """Return the value of the first column that holds a figure. A student's spread over seeds may be in a separate column."""
    for column in columns:
        value = written(row.get(column))
        if value is not None:
            spread = real(row.get(SPREAD))
            around = column == STUDENT[0] and spread is not None
            return (value[0], (value[0] - spread, value[0] + spread)) if around and spread is not None else value
    return None


def written(value: Any) -> Value | None:
    """Parse a figure and its interval from a text or a number; a spread over seeds is mean ± one standard deviation.

    >>> written("91.17 ± 0.01"), written("0.85 [0.6, 1.1]"), written(""), written(2)
    ((91.17, (91.16, 91.18)), (0.85, (0.6, 1.1)), None, (2.0, None))
    """
    if not isinstance(value, str):
        plain = real(value)
        return None if plain is None else (plain, None)
    match = WRITTEN.fullmatch(value.strip())
    if match is None:
        return None
    middle = float(match[1])
    if match[2]:
        return middle, (round(middle - float(match[2]), 9), round(middle + float(match[2]), 9))
    return middle, (float(match[3]), float(match[4])) if match[3] else None


def _label(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Return the text that distinguishes this row from the others."""
    telling = [name for name in WORDS if len({word(other.get(name)) for other in rows}) > 1 and name in row]
    return ", ".join(word(row[name]) for name in telling or WORDS[:1] if name in row) or "row"


def _accuracy(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[Block]:
    groups = [
        _bars(label, [_figure(row, columns) for columns in (CALIBRATED, STUDENT)])
        for row, label in zip(rows, labels, strict=True)
    ]
    if not any(value is not None for group in groups for value in group.values):
        return []
    names = ["after calibration", "after fine-tuning"]
    drawn = bar_chart(groups, names, title="Top-1", x_label="top-1, percent", high=100.0, decimals=2)
    teacher = next((value for row in rows if (value := _figure(row, TEACHER))), None)
    teacher_text = "" if teacher is None else f" The teacher has {teacher[0]:.2f} %."
    return [Figure("Top-1", drawn, f"Means over seeds; thin lines: one standard deviation between seeds.{teacher_text}")]


def _below(entries: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[Block]:
    pairs = [(label, value) for row, label in zip(entries, labels, strict=True) if (value := _figure(row, BELOW))]
    if not pairs:
        return []
    title = "Points below the teacher"
    rows = [(label, *value) for label, value in pairs]
    drawn = interval_chart(rows, title=title, x_label="points below the teacher", zero_label="the teacher")
    caption = (
        "Lines, where there are any: 95 % intervals over images, paired by image. An interval that holds 0: no loss is shown."
    )
    return [Figure(title, drawn, caption)]


def _cost(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[Block]:
    groups = [_bars(label, [_figure(row, columns) for columns in COST]) for row, label in zip(rows, labels, strict=True)]
    if not any(value is not None for group in groups for value in group.values):
        return []
    drawn = bar_chart(groups, ["images", "student"], title="Cost", x_label="CPU minutes")
    return [Figure("CPU time", drawn, "Of making the images and of the student, mean over seeds, interruptions included.")]


def _bars(label: str, values: Sequence[Value | None]) -> Bars:
    return Bars(label, [value and value[0] for value in values], [value and value[1] for value in values])
