"""`clusterq-finetune figures ...`: what its figures are made from, once the flags are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_device
from clusterq_common.errors import ClusterqError
from clusterq_common.escape import one_line
from clusterq_common.progress.console import info, progress
from clusterq_common.run.extras import need
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.figures.config import (
    DiversityConfig,
    FeaturesConfig,
    FileConfig,
    GridConfig,
    ImagesConfig,
    LayersConfig,
)
from clusterq_finetune.figures.sources import MOST_CLASSES, ImageGroup, chosen_classes, open_sets, real, stored
from clusterq_finetune.figures.spread import Array
from clusterq_finetune.figures.table import read_curves
from clusterq_finetune.teachers import find_teacher, load_checked_teacher, run_folder_of

# Of a grid and of a sensitivity plot, side by side.
MOST_COLUMNS, MOST_CURVES = 20, 3
# Of a class, in a legend.
LONGEST_NAME = 40

Flags = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Val:
    """Real images to show beside: where they are, and in which order their classes come; see `open_validation`."""

    path: Path | None
    classes: Path | None


def features(flags: Flags, runs: Sequence[Path], val: Val, out: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """Draw `draw_features`; returns what `--json` prints.

    Raises:
        ClusterqError: see `open_sets`, `chosen_classes`, `load_checked_teacher`, `open_validation`, `chosen_layers`, `draw_features`.
    """
    files, where = _files(flags, out)
    config, images = FeaturesConfig.validated(flags.get("figure", {})), ImagesConfig.validated(flags.get("images", {}))
    ignored = {"perplexity", "seed"}.intersection(flags.get("figure", {}))
    if config.projection == "pca" and ignored:
        raise ClusterqError(
            f"--{min(ignored)}: --projection pca has no such choice, expected it with tsne alone; leave it out."
        )
    from clusterq_finetune.figures.draw import write
    from clusterq_finetune.figures.features import draw_features

    measured = _measured(flags, runs, val, images, config, runtime)
    with progress("projecting", len(measured.layers)) as ticker:
        drawing = draw_features(
            measured.sources, measured.values, measured.layers, measured.order, measured.class_names, config, files
        )
        ticker.advance(len(measured.layers))
    write(drawing, where, files)
    return _result(drawing.caption, where, measured)


def diversity(flags: Flags, runs: Sequence[Path], val: Val, out: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """Draw `draw_diversity`; returns what `--json` prints.

    Raises:
        ClusterqError: as `features`; or a class to show that is not among the others.
    """
    files, where = _files(flags, out)
    config, images = DiversityConfig.validated(flags.get("figure", {})), ImagesConfig.validated(flags.get("images", {}))
    from clusterq_finetune.figures.diversity import draw_diversity
    from clusterq_finetune.figures.draw import write

    measured = _measured(flags, runs, val, images, config, runtime)
    known = list(measured.class_names)
    shown = list(config.shown_classes) if config.shown_classes is not None else known[:2]
    for label in shown:
        if label not in known:
            raise ClusterqError(
                f"--shown-classes: found {label}, expected some of {known}; add it to --classes, or choose another."
            )
    drawing = draw_diversity(
        measured.sources, measured.values, measured.layers, measured.order, measured.class_names, shown, config, files
    )
    write(drawing, where, files)
    return _result(drawing.caption, where, measured)


def grid(flags: Flags, runs: Sequence[Path], val: Val, out: Path) -> dict[str, Any]:
    """Draw `draw_grid`; returns what `--json` prints. No network is asked.

    Raises:
        ClusterqError: see `open_sets`, `chosen_classes`, `open_validation`.
    """
    files, where = _files(flags, out)
    config = GridConfig.validated(flags.get("figure", {}))
    from clusterq_finetune.figures.draw import write
    from clusterq_finetune.figures.grid import draw_grid

    sets = open_sets(runs, config.names)
    classes = chosen_classes(sets, config.classes, MOST_COLUMNS if config.classes else MOST_CLASSES)
    sources = _sources(flags, sets, val, classes, config.per_class, next(iter(sets.values())).manifest.teacher.arch)
    names = class_names(list(sets.values()), classes)
    drawing = draw_grid(sources, names, config.per_class, files)
    write(drawing, where, files)
    return {
        "files": {kind: str(path) for kind, path in where.items()},
        "caption": drawing.caption,
        "images": {source.name: len(source.labels) for source in sources},
        "classes": classes,
    }


def sensitivity(flags: Flags, tables: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw `draw_sensitivity`; returns what `--json` prints.

    Raises:
        ClusterqError: see `read_curves`; or more curves than a page has room for.
    """
    files, where = _files(flags, out)
    from clusterq_finetune.figures.draw import write
    from clusterq_finetune.figures.sensitivity import draw_sensitivity

    curves = [curve for path in tables for curve in read_curves(path)]
    if len(curves) > MOST_CURVES:
        raise ClusterqError(
            f"figures sensitivity: the tables hold {len(curves)} curves (one for each bits, protocol and recipe), expected at most "
            f"{MOST_CURVES}, as many as a page has room for; draw them one by one."
        )
    drawing = draw_sensitivity(curves, files)
    write(drawing, where, files)
    return {
        "files": {kind: str(path) for kind, path in where.items()},
        "caption": drawing.caption,
        "curves": [
            {"analysis": curve.analysis, "kind": curve.kind, "settings": [row.name for row in curve.rows]} for curve in curves
        ],
    }


@dataclass(frozen=True)
class _Measured:
    """Images, and what they are inside the teacher."""

    sources: list[ImageGroup]
    values: list[dict[str, Array]]
    layers: list[str]
    order: list[str]
    class_names: dict[int, str]


def _measured(
    flags: Flags, runs: Sequence[Path], val: Val, images: ImagesConfig, config: LayersConfig, runtime: RuntimeConfig
) -> _Measured:
    from clusterq_finetune.figures.measure import channel_means, chosen_layers, execution_order

    sets = open_sets(runs, images.names)
    classes = chosen_classes(sets, images.classes)
    device = prepare_device(runtime)
    teacher = _teacher(flags.get("teacher", {}), list(sets.values()), device)
    order = execution_order(teacher, device)
    layers = chosen_layers(order, config.layers)
    sources = _sources(flags, sets, val, classes, images.per_class, teacher.config.arch)
    values = []
    with progress("measuring", len(sources)) as ticker:
        for source in sources:
            values.append(channel_means(teacher, source.pixels, device))
            ticker.advance()
    return _Measured(sources, values, layers, order, class_names(list(sets.values()), classes))


def _sources(
    flags: Flags, sets: dict[str, ShardSet], val: Val, classes: Sequence[int], per_class: int, arch: str
) -> list[ImageGroup]:
    """Real images first, if any are asked for, then the sets in their order."""
    evaluation = EvaluationConfig.validated(flags.get("evaluation", {}))
    if val.path is None and (val.classes is not None or evaluation != EvaluationConfig()):
        flag = "--val-classes" if val.classes is not None else "--crop-pct, --interpolation or --pixel-range"
        raise ClusterqError(f"{flag}: there is no --val, expected real images that it is about; pass --val, or leave it out.")
    groups = [stored(name, shards, classes, per_class) for name, shards in sets.items()]
    if val.path is not None:
        spec = next(iter(sets.values())).manifest.teacher.spec
        geometry = evaluation.override_with(known_geometry(spec.size, arch))
        deep = evaluation.black_and_white
        images = open_validation(val.path, spec, classes=val.classes, geometry=geometry, pixel_range=deep, own=True)
        groups.insert(0, real(images, classes, per_class))
    for source in groups:
        few = len(source.labels) < per_class * len(classes)
        if few:
            info(f"Note: {source.name} has {len(source.labels)} images of these classes, fewer than {per_class} of each.")
    return groups


def _teacher(flags: dict[str, Any], sets: Sequence[ShardSet], device: torch.device) -> Teacher:
    """The one teacher of all sets.

    Raises:
        ClusterqError: nothing names it, or a set was made for another.
    """
    run = next((folder for shards in sets if (folder := run_folder_of(shards)) is not None), None)
    first = sets[0].manifest
    teacher = load_checked_teacher(find_teacher(flags, run, first), first, device)
    for one in sets[1:]:
        if one.manifest.teacher.digest != teacher.digest:
            raise ClusterqError(
                f"{one.folder}: made for a teacher with digest {one.manifest.teacher.digest[:19]}, the first run for one with "
                f"{teacher.digest[:19]}, expected the same for all; draw them one by one."
            )
    return teacher


def class_names(sets: Sequence[ShardSet], classes: Sequence[int]) -> dict[int, str]:
    """Title of each class: its number, and its name where a set knows it."""
    names = next((shards.manifest.class_names for shards in sets if shards.manifest.class_names), None)
    return {label: f"{label} {_short(names[label])}" if names else str(label) for label in classes}


def _short(name: str) -> str:
    """A name for a legend: one line of at most 40 characters. A set that someone else made may have any."""
    line = one_line(name)
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 3]}..."


def _files(flags: Flags, out: Path) -> tuple[FileConfig, dict[str, Path]]:
    for package in ("matplotlib", "sklearn"):
        need(package, "figures", "figures")
    from clusterq_finetune.figures.draw import files_of

    files = FileConfig.validated(flags.get("file", {}))
    return files, files_of(out, files, given=flags.get("file", {}))


def _result(caption: str, where: dict[str, Path], measured: _Measured) -> dict[str, Any]:
    return {
        "files": {kind: str(path) for kind, path in where.items()},
        "caption": caption,
        "images": {source.name: len(source.labels) for source in measured.sources},
        "layers": measured.layers,
        "classes": list(measured.class_names),
    }
