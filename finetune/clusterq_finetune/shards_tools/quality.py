"""The command `clusterq-finetune shards quality`, once its flags are known."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_device
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write, need_place
from clusterq_common.progress.console import progress
from clusterq_common.setting_names import setting_name, settings_renamed
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import named_teacher
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.real import ValidationImages, open_validation
from clusterq_finetune.shards_tools.networks import need_other_arch, other_network
from clusterq_finetune.teachers import find_teacher, load_checked_teacher, run_folder_of
from clusterq_report.measure.measuring_batch import measuring_batch
from clusterq_report.quality.collect import Networks
from clusterq_report.quality.config import QualityConfig
from clusterq_report.quality.findings import Quality
from clusterq_report.quality.measure import Real, choose, measure
from clusterq_report.quality.page import quality_page
from clusterq_report.quality.sample import Batch, Ints, sampled

# Settings of shared code, and what they are called here.
REAL_SETTINGS = {"val": "real", "classes": "real_classes"}


@dataclass(frozen=True)
class Where:
    """Networks and real images, as the flags of the command name them; None for what was left out.

    `reading` says how real images are resized, cropped and scaled.
    """

    arch: str | None = None
    weights: str | None = None
    other_arch: str | None = None
    other_weights: str | None = None
    real: Path | None = None
    real_classes: Path | None = None
    reading: EvaluationConfig = field(default_factory=EvaluationConfig)


def quality(path: Path, where: Where, config: QualityConfig, runtime: RuntimeConfig, out: Path) -> Quality:
    """Measure a set and write the page.

    Args:
        path: the set, or the run folder that it lies in.
        where: the teacher, and what else there is.
        config, runtime: settings.
        out: the page.

    Raises:
        ClusterqError: the set cannot be read or is damaged, a network is missing or does not fit, or the real images do not.
    """
    need_place("out", out)
    need_other_arch(where.other_arch, where.other_weights)
    if where.real is None and (where.real_classes is not None or where.reading != EvaluationConfig()):
        reading = f"{setting_name('crop_pct')}, {setting_name('interpolation')} or {setting_name('pixel_range')}"
        given = setting_name("real_classes") if where.real_classes is not None else reading
        real_name = setting_name("real")
        raise ClusterqError(
            f"{given}: there is no {real_name}, expected images that it belongs to; pass {real_name}, or leave it out."
        )
    device = prepare_device(runtime)
    shards = ShardSet.open(path)
    manifest = shards.manifest
    teacher = load_checked_teacher(
        find_teacher(named_teacher(where.arch, where.weights), run_folder_of(shards), manifest), manifest, device
    )
    other = None if where.other_arch is None else other_network(where.other_arch, where.other_weights, manifest, device)
    numbers = choose(shards, config)
    if len(numbers) < 2:
        raise ClusterqError(
            f"{config.split} has {len(numbers)} images, expected two or more; choose another split.", setting="split"
        )
    real = None if where.real is None else _real(where.real, where, teacher, len(numbers), config.seed)
    total = 2 * len(numbers) + (real.drawn if real is not None else 0)
    with progress("measuring", total, images=1) as ticker:
        measured = measure(shards, numbers, config, Networks(teacher, other, device), real, ticker.advance)
    atomic_write(out, quality_page(measured, shards).html())
    return measured


def _real(path: Path, where: Where, teacher: Teacher, most: int, seed: int) -> Real:
    """Draw as many real images as are measured of the set, in the proportions of the classes."""
    geometry = where.reading.override_with(known_geometry(teacher.spec.size, teacher.config.arch))
    deep = where.reading.black_and_white
    with settings_renamed(REAL_SETTINGS):
        images = open_validation(path, teacher.spec, classes=where.real_classes, geometry=geometry, pixel_range=deep, own=True)
        labels = images.numbered_labels()
    numbers = np.array(list(labels), np.int64)[sampled(np.array(list(labels.values()), np.int64), most, seed)]
    return Real(path.resolve().name, images.layout, len(labels), len(numbers), _batches(images, numbers))


def _batches(images: ValidationImages, numbers: Ints) -> Iterator[Batch]:
    """Yield readable images, a batch at a time.

    Raises:
        ClusterqError: fewer than two can be read, or one cannot be understood.
    """
    wanted, seen = set(numbers.tolist()), 0
    samples = images.chosen(lambda number, _: number in wanted)
    while True:
        with settings_renamed(REAL_SETTINGS):
            batch = images.collate(list(islice(samples, measuring_batch(images.spec))))
        if not batch.names and not batch.unreadable:
            break
        seen += len(batch.labels)
        if len(batch.labels):
            yield batch.pixels, batch.labels
    if seen < 2:
        raise ClusterqError(
            f"{seen} of the {len(numbers)} images in {images.root} can be read, expected two or more; check the folder.",
            setting="real",
        )
