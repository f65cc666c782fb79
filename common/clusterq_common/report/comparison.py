"""The page of a comparison: rows of a table as bars with intervals, and the table."""

import re
from collections.abc import Sequence
from typing import Any

from clusterq_common.report import provenance
from clusterq_common.report.bars import Bars, bar_chart
from clusterq_common.report.page import Remark, Report, Section, figure, paragraph, table
from clusterq_common.report.source import Source, real
from clusterq_common.report.text import number

FIGURE = r"-?\d{1,9}(?:\.\d{1,9})?"
# As tools/compare/paired.py writes them: `91.17 ± 0.01` over seeds, `0.85 [0.60, 1.10]` over images.
WRITTEN = re.compile(rf"({FIGURE})(?: ± ({FIGURE})| \[({FIGURE}), ({FIGURE})\])?")
TEACHER, CALIBRATED, STUDENT = "teacher", "calibrated", "student"
BELOW, COST = "below teacher [95 %]", ("set, CPU min", "student, CPU min")
# What tells rows apart.
WORDS = ("set", "method", "bits", "protocol", "recipe")


def comparison_report(source: Source) -> Report:
    """What compare_methods.py has found, from its table.json."""
    found = source.table
    names = list(dict.fromkeys(str(name) for row in found for name in row))
    labels = [_label(row, found) for row in found]
    sections = [
        Section("accuracy", "Accuracy", _accuracy(found, labels)),
        Section("below", "Below the teacher", _below(found, labels)),
        Section("cost", "Cost", _cost(found, labels)),
        Section(
            "table",
            "Table",
            table(names, [[_text(row.get(name)) for name in names] for row in found], words=4) if found else "",
        ),
        Section("again", "Run it again", provenance.again(source) if source.environment else ""),
        Section("origins", "Origins", provenance.origins(source)),
    ]
    seeds = {count for row in found if (count := real(row.get("seeds"))) is not None}
    images = {count for row in found if (count := real(row.get("images"))) is not None}
    tiles = {
        "Rows": f"{len(found)}",
        "Seeds": ", ".join(number(n) for n in sorted(seeds)),
        "Training images": ", ".join(number(n) for n in sorted(images)),
    }
    remarks = [] if found else [Remark("warning", "The table has no row.")]
    if seeds and min(seeds) < 3:
        remarks.append(
            Remark(
                "warning",
                f"{number(min(seeds))} seed{'s' if min(seeds) > 1 else ''}: how much chance there is between runs is not known; three or more tell.",
            )
        )
    remarks.append(
        Remark(
            "plain",
            "Intervals are over images: rows whose intervals overlap may still differ, and do so only if the paired difference in the table leaves out 0.",
        )
    )
    best = max(
        ((value[0], label) for row, label in zip(found, labels, strict=True) if (value := written(row.get(STUDENT)))),
        default=None,
    )
    lead = f"{len(found)} ways to a low-bit student, one teacher, the same images, quantizer and budget." + (
        f" Highest top-1: {best[1]}, {best[0]:.2f} %." if best else ""
    )
    return Report("Comparison of methods", lead, tiles, remarks, sections)


def written(value: Any) -> tuple[float, tuple[float, float] | None] | None:
    """A figure and its interval, of text or of a number; a spread over seeds as mean ± one standard deviation.

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


def _label(row: dict[str, Any], found: Sequence[dict[str, Any]]) -> str:
    """What tells this row from the others."""
    telling = [name for name in WORDS if len({str(one.get(name)) for one in found}) > 1 and name in row]
    return ", ".join(str(row[name]) for name in telling or WORDS[:1] if name in row) or "row"


def _accuracy(found: Sequence[dict[str, Any]], labels: Sequence[str]) -> str:
    groups = []
    for row, label in zip(found, labels, strict=True):
        values = [written(row.get(name)) for name in (CALIBRATED, STUDENT)]
        groups.append(Bars(label, [value and value[0] for value in values], [value and value[1] for value in values]))
    if not groups:
        return ""
    drawn = bar_chart(groups, ["after calibration", "after fine-tuning"], title="Top-1", x_label="top-1, percent", high=100.0)
    teacher = next((value for row in found if (value := written(row.get(TEACHER)))), None)
    said = "" if teacher is None else f" The teacher has {teacher[0]:.2f} %."
    return figure("Top-1", drawn, f"Means over seeds; thin lines: one standard deviation between seeds.{said}")


def _below(found: Sequence[dict[str, Any]], labels: Sequence[str]) -> str:
    pairs = [(label, value) for row, label in zip(found, labels, strict=True) if (value := written(row.get(BELOW)))]
    if not pairs:
        return ""
    groups = [Bars(label, [value[0]], [value[1]]) for label, value in pairs]
    drawn = bar_chart(
        groups, ["below teacher"], title="Points below the teacher", x_label="points below the teacher: shorter is better"
    )
    return figure(
        "Points below the teacher",
        drawn,
        "Paired by image; thin lines: 95 % intervals over images. An interval that holds 0: no loss is shown.",
    )


def _cost(found: Sequence[dict[str, Any]], labels: Sequence[str]) -> str:
    groups = []
    for row, label in zip(found, labels, strict=True):
        values = [written(row.get(name)) for name in COST]
        groups.append(Bars(label, [value and value[0] for value in values]))
    if not any(value is not None for group in groups for value in group.values):
        return paragraph("No cost is on record.") if groups else ""
    drawn = bar_chart(groups, ["images", "student"], title="Cost", x_label="CPU minutes")
    return figure("Cost", drawn, "CPU time of making the images and of the student, mean over seeds, interruptions included.")


def _text(value: Any) -> str:
    return "" if value is None else str(value)
