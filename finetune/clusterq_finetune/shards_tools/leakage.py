"""The command `clusterq-finetune shards leakage`, once its flags are known."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_device
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write, need_place
from clusterq_common.progress.console import progress
from clusterq_common.setting_names import settings_renamed
from clusterq_common.shards.facts import teacher_facts
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.split_reader import SplitReader
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import named_teacher, shown_arch
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.real import ValidationImages, open_validation
from clusterq_finetune.shards_tools.membership import STUDENT, membership
from clusterq_finetune.shards_tools.networks import need_other_arch, other_network
from clusterq_finetune.student import load_student
from clusterq_finetune.teachers import find_teacher, load_checked_teacher, run_folder_of
from clusterq_report.html.gallery import Pixels
from clusterq_report.leakage.beside import Real
from clusterq_report.leakage.collect import Networks, Read, Source, collect
from clusterq_report.leakage.config import LeakageConfig
from clusterq_report.leakage.findings import OTHER, TEACHER, Leakage, RealImages
from clusterq_report.leakage.measure import compare
from clusterq_report.leakage.page import leakage_page
from clusterq_report.leakage.spaces import Images, spaces
from clusterq_report.quality.sample import sampled

SET, TRAIN, HELD = "split", "train", "holdout"
# With fewer held-out images there are none to compare with and none as a control.
FEWEST = {SET: 1, TRAIN: 2, HELD: 4}


@dataclass(frozen=True)
class Where:
    """Networks and real images, as the flags of the command name them; None for what was left out.

    `reading` says how real images are resized, cropped and scaled.
    """

    train: Path
    holdout: Path
    real_classes: Path | None = None
    arch: str | None = None
    weights: str | None = None
    other_arch: str | None = None
    other_weights: str | None = None
    student: Path | None = None
    reading: EvaluationConfig = field(default_factory=EvaluationConfig)


def leakage(path: Path, where: Where, config: LeakageConfig, runtime: RuntimeConfig, out: Path) -> Leakage:
    """Measure what a set gives away of the training images; write the page and, beside it, the figures as JSON.

    Args:
        path: the set, or the run folder that it lies in.
        where: networks and real images.
        config, runtime: settings.
        out: the page. It holds real images, and so do the names in the JSON: both are for the owner of the images.

    Raises:
        ClusterqError: the set cannot be read, a network is missing or does not fit, or there are too few real images.
    """
    _refuse_page(out)
    need_other_arch(where.other_arch, where.other_weights)
    device = prepare_device(runtime)
    shards = ShardSet.open(path)
    manifest = shards.manifest
    networks = _networks(where, shards, device)
    teacher, other = networks.teacher, networks.other
    train, held = (_real(setting, place, where, teacher) for setting, place in ((TRAIN, where.train), (HELD, where.holdout)))
    reader = shards.split(config.split)
    drawn, seen = _collected(reader, train, held, networks, config, device)
    found_in = spaces(None if where.other_arch is None else shown_arch(where.other_arch))
    with progress("comparing", len(found_in) + 1 + config.permutations) as ticker:
        real = Real(seen[TRAIN], seen[HELD], train.name, held.name)
        compared = compare(seen[SET], real, found_in, teacher.spec.num_classes, config, advance=ticker.advance)
    attacked = membership(seen[TRAIN], seen[HELD], [TEACHER, *networks.judged], config.seed)
    leakage = Leakage(
        shards=manifest.digest,
        split=config.split,
        of_images=len(reader),
        images=len(seen[SET]),
        seed=config.seed,
        permutations=config.permutations,
        draws=compared.draws,
        teacher=teacher_facts(teacher).arch,
        teacher_digest=teacher.digest,
        other=None if other is None else shown_arch(other.config.arch),
        other_digest=None if other is None else other.digest,
        names=manifest.class_names,
        train=_about(train, drawn[TRAIN], seen[TRAIN]),
        held=_about(held, drawn[HELD], seen[HELD]),
        control=compared.control,
        equal=compared.equal,
        in_both=compared.in_both,
        alone=compared.alone,
        spaces=compared.spaces,
        membership=attacked,
    )
    _write(leakage, leakage_page(leakage, shards, _pixels(train), _pixels(held)).html(), out)
    return leakage


def _refuse_page(out: Path) -> None:
    need_place("out", out)
    if out.suffix == ".json":
        raise ClusterqError(
            f"{out.name} is the name of the figures, expected one for the page; end it in .html.", setting="out"
        )


@dataclass(frozen=True)
class _Networks:
    """The networks that look at the images.

    Attributes:
        teacher: the set's teacher.
        other: another classifier, if one was named.
        judged: by name, networks whose answers on real images alone are kept.
    """

    teacher: Teacher
    other: Teacher | None
    judged: dict[str, nn.Module]

    @property
    def featured(self) -> dict[str, Teacher]:
        """Networks whose features are compared, by name."""
        return {TEACHER: self.teacher} | ({} if self.other is None else {OTHER: self.other})


def _networks(where: Where, shards: ShardSet, device: torch.device) -> _Networks:
    manifest = shards.manifest
    teacher = load_checked_teacher(
        find_teacher(named_teacher(where.arch, where.weights), run_folder_of(shards), manifest), manifest, device
    )
    other = None if where.other_arch is None else other_network(where.other_arch, where.other_weights, manifest, device)
    judged = {} if where.student is None else {STUDENT: _student(where.student, where.arch, teacher, device)}
    return _Networks(teacher, other, judged)


def _collected(
    reader: SplitReader,
    train: ValidationImages,
    held: ValidationImages,
    networks: _Networks,
    config: LeakageConfig,
    device: torch.device,
) -> tuple[dict[str, int], dict[str, Images]]:
    """Draw images of the set and both real sources, and run them through the networks.

    Returns:
        By SET, TRAIN and HELD: how many images were drawn, and those that can be read.
    """
    numbers = {SET: _drawn([reader.label(number) for number in range(len(reader))], config.images, config.seed)}
    reads: dict[str, Read] = {SET: lambda wanted: _stored(reader, wanted)}
    for name, images in ((TRAIN, train), (HELD, held)):
        numbers[name] = _drawn(images.labels, config.real_images, config.seed)
        reads[name] = _reads(images)
    seen = {}
    with progress("looking at the images", 2 * sum(map(len, numbers.values())), images=1) as ticker:
        for name, wanted in numbers.items():
            judged = {} if name == SET else networks.judged
            looking = Networks(networks.teacher.spec, device, networks.featured, judged)
            seen[name] = collect(Source(reads[name], wanted, name, FEWEST[name]), looking, ticker.advance)
    return {name: len(wanted) for name, wanted in numbers.items()}, seen


def _write(leakage: Leakage, page: str, out: Path) -> None:
    atomic_write(out.with_suffix(".json"), json.dumps(leakage.model_dump(mode="json"), indent=1) + "\n")
    atomic_write(out, page)


def _drawn(labels: list[int], most: int, seed: int) -> list[int]:
    drawn: list[int] = sampled(np.array(labels, np.int64), most, seed).tolist()
    return drawn


def _student(folder: Path, arch: str | None, teacher: Teacher, device: torch.device) -> nn.Module:
    student, spec, _ = load_student(folder, device, arch)
    if spec != teacher.spec:
        raise ClusterqError(
            f"{folder} takes other images or classes than the set's teacher, expected a student of that teacher; choose "
            "another one.",
            setting="student",
        )
    return student


def _real(setting: str, path: Path, where: Where, teacher: Teacher) -> ValidationImages:
    geometry = where.reading.override_with(known_geometry(teacher.spec.size, teacher.config.arch))
    deep = where.reading.black_and_white
    with settings_renamed({"val": setting, "classes": "real_classes"}):
        return open_validation(path, teacher.spec, classes=where.real_classes, geometry=geometry, pixel_range=deep)


def _stored(reader: SplitReader, numbers: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    read = [reader.read(number) for number in numbers]
    pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _, _ in read])
    return pixels, torch.tensor([label for _, label, _ in read]), numbers


def _reads(images: ValidationImages) -> Read:
    """Return a reader of real images; those that cannot be decoded are left out."""

    def read(numbers: list[int]) -> tuple[Tensor, Tensor, list[int]]:
        samples = [images.sample(number) for number in numbers]
        batch = images.collate(samples)
        readable = [number for number, sample in zip(numbers, samples, strict=True) if sample.pixels is not None]
        return batch.pixels, batch.labels, readable

    return read


def _pixels(images: ValidationImages) -> Callable[[int], Pixels]:
    """Return a reader of single images as (H, W, C) uint8."""

    def read(number: int) -> Pixels:
        pixels, _, name = images[number]
        if pixels is None:
            raise ClusterqError(f"{name} cannot be read any more; leave the folder alone while it is measured.")
        return pixels.permute(1, 2, 0).numpy()

    return read


def _about(images: ValidationImages, drawn: int, seen: Images) -> RealImages:
    return RealImages(
        name=images.root.resolve().name,
        layout=images.layout,
        images=len(images),
        compared=len(seen),
        unreadable=drawn - len(seen),
        remarks=[remark.line() for remark in images.remarks],
    )
