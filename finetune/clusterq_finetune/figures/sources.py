"""Sources of a figure's images: sets of shards, and real images for comparison. Images are never selected by appearance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import progress
from clusterq_common.run.run_folder import SHARDS
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.manifest import Manifest
from clusterq_common.shards.read import ShardSet
from clusterq_finetune.data.real import ValidationImages
from clusterq_report.sample_selection import first_of_classes, spread_classes

REAL = "real images"
# More classes cannot be distinguished by colour.
MOST_CLASSES = 10
# Number of panels that fit side by side on a page.
MOST_SOURCES = 5

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class ImageGroup:
    """Images of one run, or real images.

    Attributes:
        name: name in the figure.
        about: description for a caption.
        pixels: (N, C, H, W) uint8, class after class.
        labels: (N,) requested class of a generated image, or the label of a real one.
    """

    name: str
    about: str
    pixels: Tensor
    labels: Ints

    @property
    def real(self) -> bool:
        """True for real images."""
        return self.name == REAL


def open_sets(paths: Sequence[Path], names: Sequence[str] | None) -> dict[str, ShardSet]:
    """Open sets of shards with the same kind of images, by their names in the figure.

    Raises:
        ClusterqError: there are too many sets, no shards in one, another number of names than of sets, duplicate names, or images
            that differ in size or in classes.
    """
    if len(paths) > MOST_SOURCES:
        raise ClusterqError(
            f"figures: found {len(paths)} runs, expected at most {MOST_SOURCES}, as many as a page has room for; leave some out."
        )
    if names is not None and len(names) != len(paths):
        raise ClusterqError(
            f"found {len(names)} names for {len(paths)} runs, expected one each, in their order; correct it.", setting="names"
        )
    chosen = [_name_of(path) for path in paths] if names is None else list(names)
    if len({*chosen, REAL}) != len(chosen) + 1:
        raise ClusterqError(
            f"the runs would be called {', '.join(chosen)}, expected names that differ (and are not {REAL!r}); give some "
            f"with {setting_name('names')}.",
            setting="names",
        )
    sets = {name: ShardSet.open(path) for name, path in zip(chosen, paths, strict=True)}
    specs = [shards.manifest.teacher.spec for shards in sets.values()]
    for path, spec in zip(paths, specs, strict=True):
        if spec != specs[0]:
            raise ClusterqError(
                f"{path}: its images are {spec.channels}x{spec.shown_size} of {spec.num_classes} classes, normalised for their "
                f"teacher; those of {paths[0]} are {specs[0].channels}x{specs[0].shown_size} of {specs[0].num_classes} or "
                "normalised otherwise; compare sets made for one kind of teacher."
            )
    return sets


def chosen_classes(sets: dict[str, ShardSet], wanted: tuple[int, ...] | None, most: int = MOST_CLASSES) -> list[int]:
    """Return the classes of a figure: those requested, or up to `most` that every set has, evenly spread.

    Raises:
        ClusterqError: there are too many classes, an unknown one, or one without an image in some set.
    """
    counts = [shards.manifest.splits["train"].per_class for shards in sets.values()]
    least = [min(each) for each in zip(*counts, strict=True)]
    if wanted is None:
        chosen = spread_classes(least, most)
        if not chosen:
            raise ClusterqError(
                "figures: the runs have no class in common, expected one at least that all have images of; compare others."
            )
        return chosen
    if len(wanted) > most:
        raise ClusterqError(
            f"found {len(wanted)}, expected at most {most}, as many as can be told apart; choose fewer.", setting="classes"
        )
    for label in wanted:
        if label >= len(least) or not least[label]:
            what = "has no images in one of the sets" if label < len(least) else f"is none of {len(least)}"
            raise ClusterqError(
                f"class {label} {what}, expected classes that all of them have; choose others.", setting="classes"
            )
    return list(wanted)


def stored(name: str, shards: ShardSet, classes: Sequence[int], per_class: int) -> ImageGroup:
    """Read the first images of each class in a set's training split.

    Raises:
        ClusterqError: a sample cannot be read.
    """
    reader = shards.split("train")
    numbers = first_of_classes(reader, list(classes), per_class, len(reader))
    images = [reader.read(number)[0] for own in numbers.values() for number in own]
    labels = np.array([label for label, own in numbers.items() for _ in own], dtype=np.int64)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return ImageGroup(name, f"{name}: {_made(shards.manifest)}", pixels, labels)


def real(images: ValidationImages, classes: Sequence[int], per_class: int) -> ImageGroup:
    """Read the first real images of each class in the order of their names, preprocessed for the teacher. Skips unreadable ones.

    Raises:
        ClusterqError: a class has no readable image.
    """
    own: dict[int, list[Tensor]] = {label: [] for label in classes}
    with progress("reading real images", per_class * len(classes)) as ticker:
        for sample in images.chosen(lambda _, label: label in own and len(own[label]) < per_class):
            if sample.refused:
                raise ClusterqError(sample.refused)
            if sample.pixels is not None:
                own[sample.label].append(sample.pixels)
                ticker.advance()
            if all(len(images_of_class) == per_class for images_of_class in own.values()):
                break
    empty = next((label for label in classes if not own[label]), None)
    if empty is not None:
        raise ClusterqError(
            f"{images.root} holds no readable image of class {empty}, expected some of every class shown; "
            f"choose others with {setting_name('classes')}.",
            setting="val",
        )
    read = [pixels for label in classes for pixels in own[label]]
    labels = np.array([label for label in classes for _ in own[label]], dtype=np.int64)
    return ImageGroup(REAL, f"{REAL}: {images.layout} {images.root.name}", torch.stack(read), labels)


def _name_of(path: Path) -> str:
    """Return the name of a run folder, also for the `shards` folder in it."""
    whole = path.resolve()
    return whole.parent.name if whole.name == SHARDS else whole.name


def _made(manifest: Manifest) -> str:
    made = manifest.generation
    how = (
        f"{made.method}, seed {made.seed}" if made else f"{manifest.derivation.operation if manifest.derivation else 'derived'}"
    )
    return f"{how}, set {manifest.digest.removeprefix('sha256:')[:12]}"
