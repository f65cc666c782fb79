"""Preparation of a fine-tuning: its inputs, opened and checked before anything is written."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clusterq_common.device.distributed import Ranks
from clusterq_common.device.setup import prepare_device
from clusterq_common.progress.console import info, warn
from clusterq_common.quant.convert import convert
from clusterq_common.run.run_folder import CONFIG
from clusterq_common.run.tensorboard import need_tensorboard
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.read import ShardSet
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.place import Place, also_here, locate
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.budget import plan_of_run, plan_within
from clusterq_finetune.config import FinetuneConfig, resolve
from clusterq_finetune.data.calibration import calibration_batches
from clusterq_finetune.data.logits import LogitsSource, choose_logits
from clusterq_finetune.data.real import ValidationImages, open_validation
from clusterq_finetune.data.real.labels import other_order_remark
from clusterq_finetune.estimate import Timed
from clusterq_finetune.evaluation.predictions import NOTHING_MORE, KeptPredictions
from clusterq_finetune.recipes.chosen_bits import need_choice
from clusterq_finetune.recipes.heldout import need_heldout
from clusterq_finetune.teachers import find_teacher, load_checked_teacher, run_folder_of

# Images whose stored logits a dry run compares with the teacher's. A run compares a whole batch, which takes seconds at 224x224.
COMPARED = 8


@dataclass(frozen=True)
class Request:
    """A fine-tuning as the command line asks for it.

    Attributes:
        flags: section -> field -> value, the given settings.
        shards: folder or address of the set.
        out: folder of the student; None: a default one.
        val, classes: real images for the evaluation, and the names of their classes.
        resume: continue the run in `out`.
        overwrite: delete the run in `out` first.
        dry_run: print the plan, and write nothing.
        keep: which predictions are kept beyond the usual.
        sharing: limits for a set at an address, and whose sets are taken. The default takes any maker's.
        time_budget: seconds; a new run's steps are planned to fit.
        own_set: whether the same command has made the set, so that its maker is not told.
        accepted: whether a command has accepted a larger budget, of which `time_budget` is what is left. Then it refuses nothing.
    """

    flags: dict[str, dict[str, Any]]
    shards: str | Path
    out: Path | None = None
    val: Path | None = None
    classes: Path | None = None
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    keep: KeptPredictions = NOTHING_MORE
    sharing: SharingConfig = field(default_factory=SharingConfig)
    time_budget: float | None = None
    own_set: bool = False
    accepted: bool = False


@dataclass
class Job:
    """A fine-tuning whose inputs are open and checked.

    Attributes:
        request: what was asked for.
        ranks: the processes that share the work.
        config: the settings in full. Choosing bits replaces them.
        place: where the set came from.
        shards: the set.
        teacher: the classifier.
        student: the converted network, neither calibrated nor trained. Choosing bits replaces it.
        images: real images for the evaluation; None for none.
        logits: whether the teacher's stored logits are used, and why.
        folder: folder of the run.
        device: device of the networks.
        timed: measurements of this machine's speed.
        going_on: whether a run in the folder is continued.
    """

    request: Request
    ranks: Ranks
    config: FinetuneConfig
    place: Place
    shards: ShardSet
    teacher: Teacher
    student: nn.Module
    images: ValidationImages | None
    logits: LogitsSource
    folder: Path
    device: torch.device
    timed: Timed
    going_on: bool

    @property
    def samples(self) -> int:
        """Number of training images in the set."""
        return len(self.shards.split("train"))


def prepare(request: Request, ranks: Ranks) -> Job:
    """Open set, teacher and real images, resolve the settings, and convert the student.

    Raises:
        ClusterqError: see `locate`, `ShardSet.open`, `find_teacher`, `load_checked_teacher`, `open_validation`, `fit_into`.
    """
    request.keep.need(request.val)
    if request.flags.get("output", {}).get("tensorboard"):
        need_tensorboard()
    found = ranks.from_first(lambda: locate(request.shards, request.sharing, own=request.own_set))
    place = also_here(found, request.shards, request.sharing)
    shards = ShardSet.open(place.folder)
    run = run_folder_of(shards)
    teacher_config = find_teacher(request.flags.get("teacher", {}), run, shards.manifest)
    # GDFQ's line has one set of values for CIFAR and one for ImageNet.
    large = not shards.manifest.teacher.spec.small
    where = place.address or str(shards.folder.resolve())
    config = resolve(request.flags, where, teacher_config, digest=shards.manifest.digest, imagenet_sized=large)
    need_heldout(config.recipe, shards)
    need_choice(config, shards)
    device = prepare_device(config.runtime)
    teacher = load_checked_teacher(config.teacher, shards.manifest, device)
    config = config.model_copy(update={"teacher": teacher.config})
    folder = request.out or _default_folder(run, config)
    images = _real_images(request, config, teacher, shards)
    # The first look at the given bits; chosen ones are shown once they are known.
    shown = info if request.dry_run or not config.choice.active else None
    # A dry run times the student, whatever its ranges.
    example, search = teacher.spec.example().to(device), not request.dry_run
    student = convert(teacher.model, config.quant, example, shown, search=search).eval()
    batch = next(iter(calibration_batches(shards, config)))
    logits = choose_logits(config.recipe, batch, teacher, device, compared=COMPARED if request.dry_run else None)
    timed = Timed(student, teacher, shards, device, images, stored_logits=logits.stored)
    going_on = request.resume and (folder / CONFIG).is_file()
    job = Job(request, ranks, config, place, shards, teacher, student, images, logits, folder, device, timed, going_on)
    if request.time_budget is not None:
        job.config = _within_budget(job, request.time_budget)
    return job


def _default_folder(run: Path | None, config: FinetuneConfig) -> Path:
    """Return `finetune-w4a4` in the run folder, or in the current directory for shards from elsewhere or a read-only folder."""
    name = "-".join(filter(None, ("finetune", config.quant.bits, config.choice.label)))
    return run / name if run is not None and os.access(run, os.W_OK) else Path(name)


def _real_images(request: Request, config: FinetuneConfig, teacher: Teacher, shards: ShardSet) -> ValidationImages | None:
    """Open the real images, if any, and warn where their classes are in another order than the set's."""
    if request.val is None:
        return None
    geometry = config.evaluation.override_with(known_geometry(teacher.spec.size, teacher.config.arch))
    pixel_range = config.evaluation.black_and_white
    images = open_validation(
        request.val, teacher.spec, classes=request.classes, geometry=geometry, pixel_range=pixel_range, own=True
    )
    order = other_order_remark(images.class_names, shards.manifest.class_names)
    if order is not None:
        warn(order.line())
        images.remarks.append(order)
    return images


def _within_budget(job: Job, seconds: float) -> FinetuneConfig:
    """Return the settings with a plan that fits into the time, or with the plan of the run that is continued."""
    if job.going_on:
        info(f"{setting_name('time_budget')}: the run in {job.folder} keeps the plan that it was started with")
        return plan_of_run(job.folder, job.config)
    given = job.request.flags.get("recipe", {})
    info("timing a few steps for the plan")
    return plan_within(job.config, seconds, job.timed, grow="reconstruct_steps" not in given, accepted=job.request.accepted)
