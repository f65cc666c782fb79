"""Text version of a quality report: the set's figures beside those of pure noise and of real images. Free of torch."""

from collections.abc import Callable

from clusterq_common.quantities import number, percent
from clusterq_report.quality.findings import Diversity, ImageFigures, Quality
from clusterq_report.quality.score import score
from clusterq_report.quality.verdicts import verdicts

COLUMNS = {"set": "this set", "noise": "pure noise", "real": "real images"}
MARKS = {"good": "+", "plain": " ", "warning": "!"}


def summary_rows(found: Quality) -> tuple[list[str], list[list[str]]]:
    """Return the heads and a row for each figure: its name and its value for each source. Rows without any value are left out."""
    sources = {name: found.sources[name] for name in COLUMNS if name in found.sources}
    heads = ["", *(COLUMNS[name] for name in sources)]
    rows = [[figure_name, *(shown(source) for source in sources.values())] for figure_name, shown in _figures(found).items()]
    return heads, [row for row in rows if any(cell != "–" for cell in row[1:])]


def summary_lines(found: Quality) -> list[str]:
    """Return the table and the verdicts, one line each."""
    heads, rows = summary_rows(found)
    first = max(len(row[0]) for row in rows)
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(1, len(heads))]
    lines = [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))])
        for row in [heads, *rows]
    ]
    return [*lines, "", *(f"{MARKS[remark.level]} {remark.sentence}" for remark in verdicts(found))]


def _figures(found: Quality) -> dict[str, Callable[[ImageFigures], str]]:
    def share(value: float | None, decimals: int = 1) -> str:
        return percent(None if value is None else 100 * value, decimals)

    def mean(values: list[float]) -> str:
        return number(sum(values) / len(values))

    def near(space: Callable[[ImageFigures], Diversity]) -> dict[str, Callable[[ImageFigures], str]]:
        return {
            "nearest of its class": lambda one: number(space(one).nearest),
            "nearest of as many others": lambda one: number(space(one).nearest_other),
            "any two of a class": lambda one: number(space(one).within),
        }

    pixels = {f"pixels: {name}": shown for name, shown in near(lambda one: one.pixels).items()}
    features = {f"features: {name}": shown for name, shown in near(lambda one: one.features).items()}
    other = found.other or "the other network"
    return {
        "images": lambda one: f"{one.images:,}",
        "classes": lambda one: f"{one.classes:,}",
        "teacher names the label": lambda one: share(one.agreement, 2),
        f"{other} names the label": lambda one: share(one.other, 2),
        f"{other} agrees with the teacher": lambda one: share(one.other_teacher, 2),
        "confidence, mean": lambda one: share(one.confidence.mean),
        "confidence, 5th to 95th percentile": lambda one: f"{share(one.confidence.low)} to {share(one.confidence.high)}",
        "entropy, of the most possible": lambda one: share(one.entropy.mean),
        "BatchNorm mean off, running stds": lambda one: mean([layer.mean for layer in one.batchnorm]),
        "BatchNorm std off, share": lambda one: mean([layer.std for layer in one.batchnorm]),
        "clipped pixel values": lambda one: share(one.clipped, 2),
        "pixels: typical distance, of 255": lambda one: number(one.pixels.typical),
        **pixels,
        **features,
        "images with an exact copy": lambda one: f"{one.exact:,}",
        "images with a near-duplicate": lambda one: share(one.near, 2),
        "Frechet distance to real (of real: halves)": lambda one: number(one.frechet.squared if one.frechet else None),
        "the same, of the real variance": lambda one: number(one.frechet.relative if one.frechet else None),
        "score among sets of this teacher, 0 to 1": lambda one: number(score(found) if one is found.sources["set"] else None),
    }
