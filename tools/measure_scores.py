"""Measure which figures of `shards quality` rank sets as the accuracy of their students does.

    clusterq-finetune shards quality sets/NAME --json | tail -1 > quality/NAME.json      # for each set
    clusterq-finetune evaluate --student students/NAME --val V --json | tail -1 > accuracy/NAME.json
    python tools/measure_scores.py --quality quality/ --students accuracy/ --without noise

Prints Spearman's rank correlation of each figure and score with the students' top-1, in two Markdown tables. A figure's sign is set so that 1
means: the better figure, the better student. Intervals are bootstrapped over sets; p-values come from random permutations and are corrected for
the number of figures (Holm). Labels of real images are used here alone, to judge the figures.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clusterq_common.intervals import holm
from clusterq_report.quality.findings import ImageFigures, Quality
from clusterq_report.quality.score import balance, batchnorm_distance, score

Floats = np.ndarray[Any, np.dtype[np.float64]]
RESAMPLES = 10_000
PERMUTATIONS = 100_000
# Fewer sets cannot show an order: of four, one in 24 is right by chance.
LEAST = 5


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation, its 95 % bootstrap interval, and its two-sided permutation p."""

    rho: float
    low: float
    high: float
    p: float


def _of(figure: Callable[[ImageFigures], float | None]) -> Callable[[Quality], float]:
    """Return a function that reads a figure of the set; NaN where the set has none."""

    def read(found: Quality) -> float:
        value = figure(found.sources["set"])
        return math.nan if value is None else value

    return read


def _over(first: float | None, second: float | None) -> float | None:
    return None if first is None or not second else first / second


def _average(values: list[float]) -> float:
    return sum(values) / len(values)


# Sign and value of each figure. Signs are what docs/shard-quality.md calls better, and were set before any correlation was known.
FIGURES: dict[str, tuple[int, Callable[[Quality], float]]] = {
    "teacher names the label": (1, _of(lambda one: one.agreement)),
    "mean confidence": (1, _of(lambda one: one.confidence.mean)),
    "entropy": (-1, _of(lambda one: one.entropy.mean)),
    "BatchNorm mean off": (-1, _of(lambda one: _average([layer.mean for layer in one.batchnorm]))),
    "BatchNorm std off": (-1, _of(lambda one: _average([layer.std for layer in one.batchnorm]))),
    "clipped pixel values": (-1, _of(lambda one: one.clipped)),
    "pixels: typical distance": (1, _of(lambda one: one.pixels.typical)),
    "pixels: nearest of its class": (1, _of(lambda one: one.pixels.nearest)),
    "pixels: any two of a class": (1, _of(lambda one: one.pixels.within)),
    "features: nearest of its class": (1, _of(lambda one: one.features.nearest)),
    "features: nearest of others over of its class": (
        1,
        _of(lambda one: _over(one.features.nearest_other, one.features.nearest)),
    ),
    "features: any two of a class": (1, _of(lambda one: one.features.within)),
    "number of images": (1, _of(lambda one: one.images)),
    "balance of the classes": (1, balance),
    "score: BatchNorm distance, mean and std": (-1, _of(batchnorm_distance)),
    "score: balance x agreement x nearness to BatchNorm": (1, score),
}
SCORES = tuple(name for name in FIGURES if name.startswith("score: "))


def ranks(values: Floats) -> Floats:
    """Return ranks from 1 along the last axis; equal values share their mean rank."""
    less = (values[..., None, :] < values[..., :, None]).sum(-1)
    same = (values[..., None, :] == values[..., :, None]).sum(-1)
    return less + (same + 1) / 2


def spearman(first: Floats, second: Floats) -> Floats:
    """Return the rank correlation along the last axis of (..., sets) values; NaN where all values of one side are equal."""
    a, b = (ranks(values) - (values.shape[-1] + 1) / 2 for values in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return found


def correlate(figure: Floats, top1: Floats, seed: int) -> Correlation | None:
    """Return the correlation of (sets,) figures with accuracies, or None where the figure is the same in all sets."""
    rho = float(spearman(figure, top1))
    if math.isnan(rho):
        return None
    draws = np.random.default_rng([seed, 0]).integers(0, len(top1), (RESAMPLES, len(top1)))
    # A resample in which all sets have the same value says nothing about order.
    resampled = spearman(figure[draws], top1[draws])
    low, high = np.nanquantile(resampled, [0.025, 0.975]).tolist()
    shuffled = np.random.default_rng([seed, 1]).permuted(np.tile(top1, (PERMUTATIONS, 1)), axis=1)
    as_far = np.abs(spearman(figure, shuffled)) >= abs(rho) - 1e-12
    return Correlation(rho, low, high, (1 + int(as_far.sum())) / (1 + PERMUTATIONS))


def read_sets(quality: Path, students: Path, without: list[str]) -> dict[str, tuple[Quality, float]]:
    """Return figures and the student's top-1 of each set, by name, in sorted order."""
    found = {}
    for file in sorted(quality.glob("*.json")):
        if file.stem in without:
            continue
        student = students / file.name
        if not student.is_file():
            sys.exit(
                f"{student} is missing, expected the accuracy of the student of {file.stem}; evaluate it, or pass --without."
            )
        top1 = json.loads(student.read_text())["student"]["top1"]
        figures = json.loads(file.read_text())
        figures.pop("score", None)  # it follows from the others
        found[file.stem] = Quality.model_validate(figures), float(top1)
    unknown = [name for name in without if not (quality / f"{name}.json").is_file()]
    if unknown:
        sys.exit(f"--without: there is no set {unknown[0]} in {quality}, expected some of its names.")
    if len(found) < LEAST:
        sys.exit(f"{quality} has {len(found)} sets to compare, expected {LEAST} or more.")
    return found


def set_lines(found: dict[str, tuple[Quality, float]]) -> list[str]:
    """Return a Markdown table with a row for each set, the best student first."""
    shown = ("BatchNorm mean off", "BatchNorm std off", "mean confidence", "features: any two of a class", *SCORES)
    lines = ["| set | images | " + " | ".join(shown) + " | student |", "|---|" + "---:|" * (len(shown) + 2)]
    for name, (one, top1) in sorted(found.items(), key=lambda item: -item[1][1]):
        values = " | ".join(f"{FIGURES[figure][1](one):.3f}" for figure in shown)
        lines.append(f"| {name} | {one.sources['set'].images} | {values} | {top1:.2f} |")
    return lines


def correlation_lines(found: dict[str, tuple[Quality, float]], seed: int) -> list[str]:
    """Return a Markdown table with a row for each figure: its rank correlation, interval and p-values."""
    top1 = np.array([accuracy for _, accuracy in found.values()])
    rows: dict[str, Correlation | None] = {}
    for name, (sign, value) in FIGURES.items():
        values = np.array([sign * value(one) for one, _ in found.values()])
        rows[name] = None if np.isnan(values).any() else correlate(values, top1, seed)
    usable = {name: row for name, row in rows.items() if row is not None}
    corrected = dict(zip(usable, holm([row.p for row in usable.values()]), strict=True))
    lines = ["| figure | better is | rank correlation | p | corrected |", "|---|---|---|---:|---:|"]
    for name, row in rows.items():
        better = "more" if FIGURES[name][0] > 0 else "less"
        if row is None:
            lines.append(f"| {name} | {better} | none: the same in all sets, or unknown in one | | |")
        else:
            interval = f"{row.rho:+.2f} [{row.low:.2f}, {row.high:.2f}]"
            lines.append(f"| {name} | {better} | {interval} | {row.p:.2g} | {corrected[name]:.2g} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Read both folders and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quality", type=Path, required=True, help="folder of NAME.json, what `shards quality --json` printed")
    parser.add_argument("--students", type=Path, required=True, help="folder of NAME.json, what `evaluate --json` printed")
    parser.add_argument("--without", default="", help="names of sets to leave out, with commas between")
    parser.add_argument("--seed", type=int, default=0, help="of resamples and permutations (default: %(default)s)")
    options = parser.parse_args(arguments)
    without = [name for name in options.without.split(",") if name]
    found = read_sets(options.quality, options.students, without)
    print("\n".join([*set_lines(found), "", *correlation_lines(found, options.seed)]))


if __name__ == "__main__":
    main()
