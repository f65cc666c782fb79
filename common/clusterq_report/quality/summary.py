"""Text version of a quality report: the set's figures beside those of pure noise and of real images. Free of torch."""

from collections.abc import Callable

from clusterq_common.quantities import number, percent
from clusterq_report.quality.findings import Diversity, ImageFigures, Quality
from clusterq_report.quality.score import score
from clusterq_report.quality.verdicts import verdicts

COLUMNS = {"set": "this set", "noise": "pure noise", "real": "real images"}
MARKS = {"good": "+", "plain": " ", "warning": "!"}


def summary_rows(quality: Quality) -> tuple[list[str], list[list[str]]]:
    """Return the heads and a row for each figure: its name and its value for each source. Rows without any value are left out."""
    sources = {name: quality.sources[name] for name in COLUMNS if name in quality.sources}
    heads = ["", *(COLUMNS[name] for name in sources)]
    rows = [[figure_name, *(shown(source) for source in sources.values())] for figure_name, shown in _figures(quality).items()]
    return heads, [row for row in rows if any(cell != "–" for cell in row[1:])]


def summary_lines(quality: Quality) -> list[str]:
    """Return the table and the verdicts, one line each."""
    heads, rows = summary_rows(quality)
    first = max(len(row[0]) for row in rows)
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(1, len(heads))]
    lines = [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))])
        for row in [heads, *rows]
    ]
    return [*lines, "", *(f"{MARKS[remark.level]} {remark.sentence}" for remark in verdicts(quality))]


def _figures(quality: Quality) -> dict[str, Callable[[ImageFigures], str]]:
    def share(value: float | None, decimals: int = 1) -> str:
        return percent(None if value is None else 100 * value, decimals)

    def mean(values: list[float]) -> str:
        return number(sum(values) / len(values))

    def near(space: Callable[[ImageFigures], Diversity]) -> dict[str, Callable[[ImageFigures], str]]:
        return {
            "nearest of its class": lambda source: number(space(source).nearest),
            "nearest of as many others": lambda source: number(space(source).nearest_other),
            "any two of a class": lambda source: number(space(source).within),
        }

    pixels = {f"pixels: {name}": shown for name, shown in near(lambda source: source.pixels).items()}
    features = {f"features: {name}": shown for name, shown in near(lambda source: source.features).items()}
    other = quality.other or "the other network"
    return {
        "images": lambda source: f"{source.images:,}",
        "classes": lambda source: f"{source.classes:,}",
        "teacher names the label": lambda source: share(source.agreement, 2),
        f"{other} names the label": lambda source: share(source.other, 2),
        f"{other} agrees with the teacher": lambda source: share(source.other_teacher, 2),
        "confidence, mean": lambda source: share(source.confidence.mean),
        "confidence, 5th to 95th percentile": lambda source: (
            f"{share(source.confidence.low)} to {share(source.confidence.high)}"
        ),
        "entropy, of the most possible": lambda source: share(source.entropy.mean),
        "BatchNorm mean off, running stds": lambda source: mean([layer.mean for layer in source.batchnorm]),
        "BatchNorm std off, share": lambda source: mean([layer.std for layer in source.batchnorm]),
        "clipped pixel values": lambda source: share(source.clipped, 2),
        "pixels: typical distance, of 255": lambda source: number(source.pixels.typical),
        **pixels,
        **features,
        "images with an exact copy": lambda source: f"{source.exact:,}",
        "images with a near-duplicate": lambda source: share(source.near, 2),
        "Frechet distance to real (of real: halves)": lambda source: number(source.frechet.squared if source.frechet else None),
        "the same, of the real variance": lambda source: number(source.frechet.relative if source.frechet else None),
        "score among sets of this teacher, 0 to 1": lambda source: number(
            score(quality) if source is quality.sources["set"] else None
        ),
    }
