"""Accuracy differences on the same images, over seeds and over subsets of the images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from clusterq_common.intervals import Bools, Interval, paired

MODELS = {"teacher", "calibrated", "student"}


@dataclass(frozen=True)
class Repeats:
    """Several seeds of one setting, evaluated on the same images.

    Attributes:
        names: names of the images, sorted.
        right: by model, (seeds, images): whether the prediction is correct.
    """

    names: list[str]
    right: dict[str, Bools]

    @classmethod
    def read(cls, files: Sequence[Path]) -> "Repeats":
        """Read the predictions.npz of runs that were evaluated on the same images.

        Raises:
            ValueError: the images differ.
        """
        names: list[str] = []
        right: dict[str, list[Bools]] = {}
        for file in files:
            with np.load(file, allow_pickle=False) as found:
                if names and found["name"].tolist() != names:
                    raise ValueError(f"{file} is about other images than {files[0]}")
                names = found["name"].tolist()
                for model in MODELS.intersection(found):
                    right.setdefault(model, []).append(found[model] == found["label"])
        return cls(names, {model: np.stack(rows) for model, rows in right.items()})

    def only(self, keep: Callable[[str, int], bool]) -> "Repeats":
        """Return the images for which `keep(name, position in its folder)` holds, positions counted from 0 in sorted order."""
        seen: dict[str, int] = {}
        chosen = []
        for name in self.names:
            folder = name.rpartition("/")[0]
            chosen.append(keep(name, seen.get(folder, 0)))
            seen[folder] = seen.get(folder, 0) + 1
        mask = np.array(chosen)
        return Repeats(
            [n for n, k in zip(self.names, chosen, strict=True) if k], {m: r[:, mask] for m, r in self.right.items()}
        )

    def top1(self, model: str) -> list[float]:
        """Return top-1 in percent, by seed."""
        return [float(value) for value in 100 * self.right[model].mean(1)]

    def below(self, model: str = "student", reference: str = "teacher") -> Interval:
        """Return how many points `model` is below `reference` on average over seeds, paired by image."""
        return paired(self.right[reference], self.right[model])


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation over seeds as text."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
