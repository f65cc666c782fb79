"""Stage "imagenet": real MobileNets at 224x224 and 1000 classes, from the generator to students, with the speed of each part."""

import time
from pathlib import Path
from typing import Any

import torch
from packed import Pack
from record import Record
from setups import Setup, finetune_steps
from thin import thinned
from timing import time_step

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_device
from clusterq_common.errors import ClusterqError
from clusterq_common.run.run_folder import GENERATOR
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import build_architecture
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune import commands as finetune_commands
from clusterq_finetune.data.shard_batches import ShardDataset, batches
from clusterq_finetune.prepare import Request
from clusterq_gen import commands as gen_commands
from clusterq_gen.presets import resolve

# The second one is only reported; nothing is chosen by it.
TEACHERS = ("mobilenet_v1_x025", "mobilenet_v1_x075")
# As many images of a class as one refinement makes at once.
PER_CLASS, REFINE_STEPS, GENERATOR_STEPS = 4, 60, 480
# Reconstruction and epochs of each student; students with eight-bit weights are only calibrated.
CALIBRATED = {"reconstruct": "none", "epochs": 0}
STUDENTS: dict[str, dict[str, Any]] = {"w8a8": CALIBRATED, "w4a4": {}, "w4a8": {}}
DECODED = 512
# Time of one teacher at full size on an H200, and the total time below which only the first teacher is used.
WHOLE_SECONDS, LEAST_FOR_TWO = 150.0, 130.0
# Number of photographs for evaluation in a rehearsal, and side of its images: more than 64, as networks differ there, and it makes some of each of 1000 classes.
FEW, SMALL_SIDE = 8, 72


def run(record: Record, pack: Pack, work: Path) -> None:
    """Make a set and three students for each teacher, most important first, and evaluate them on 500 photographs."""
    device = prepare_device(RuntimeConfig())
    # Work that takes the whole stage at full size is scaled to the available time, and labelled accordingly.
    teachers = TEACHERS[:1] if record.rehearsal or record.seconds < LEAST_FOR_TWO else TEACHERS
    scale = min(1.0, record.seconds / len(teachers) / WHOLE_SECONDS)
    images = thinned(pack.photographs, FEW, work) if record.rehearsal else pack.photographs
    for number, name in enumerate(teachers):
        share = record.left / (len(teachers) - number)
        end = record.left - share
        out = work / name
        teacher = pack.teacher(name)
        if record.rehearsal:
            teacher = _small(teacher)
        record.part(f"{name}: set", lambda t=teacher, n=name, o=out: _set(record, t, n, o, scale, device), needs=20)
        for bits, recipe in list(STUDENTS.items())[: 2 if record.rehearsal else None]:
            needs = 5 if recipe == CALIBRATED else 12
            if record.left - needs < end and not record.rehearsal:
                record.failures[f"{name}: {bits}"] = "not begun: the next teacher's time"
                continue
            record.part(
                f"{name}: {bits}",
                lambda n=name, o=out, b=bits, r=recipe: _student(record, images, n, o, b, r, scale, device),
                needs=needs,
            )
        record.part(f"{name}: reading", lambda t=teacher, n=name, o=out: _reading(record, t, n, o, device), needs=3)


def _small(teacher: TeacherConfig) -> TeacherConfig:
    """Return a teacher of small images, or the teacher itself where its last pooling does not take them."""
    small = teacher.model_copy(update={"input_size": SMALL_SIDE})
    try:
        build_architecture(small)
    except ClusterqError:
        return teacher
    return small


def _set(record: Record, teacher: TeacherConfig, name: str, out: Path, scale: float, device: torch.device) -> None:
    graphs, small = device.type == "cuda", record.rehearsal
    epochs, steps = (2, 1) if small else (16, max(10, int(scale * GENERATOR_STEPS / 16)))
    # A rehearsal does not refine, because a refinement makes four images of each class at once.
    per_class, refine = (1, 0) if small else (PER_CLASS, max(10, int(scale * REFINE_STEPS)))
    flags: dict[str, dict[str, Any]] = {
        "teacher": teacher.model_dump(),
        "generator": {"width": 8} if small else {},
        "quant": {"range": "minmax"} if small else {},
        "train": {"epochs": epochs, "steps_per_epoch": steps, "batch_size": 64, "cuda_graphs": graphs},
        "emit": {
            "per_class": per_class,
            "heldout_per_class": 0,
            **({"refine_steps": refine, "refine_class_weight": 1.0} if refine else {"refine_steps": 0}),
            "keep_misclassified": small,
            "workers": 1 if small else 12,
        },
        "output": {"report": False},
    }
    if small:  # all classes are seen once when warm-up ends
        flags["train"] |= {"batch_size": 8, "classes_per_batch": 8}
    config = resolve(flags, "quick", imagenet_sized=True)
    trained: list[float] = []
    begin = time.monotonic()
    gen_commands.train(config, out, resume=False, overwrite=False, dry_run=False)
    trained.append((out / GENERATOR).stat().st_mtime - (out / "config.yaml").stat().st_mtime)
    seconds, images = time.monotonic() - begin, len(ShardDataset(ShardSet.open(out), "train"))
    note = f"{epochs} x {steps} steps of batch {config.train.batch_size}, {per_class} images a class refined for {refine} steps"
    record.add(f"{name}: set", seconds, "s", note)
    record.add(
        f"{name}: generator's steps", epochs * steps / max(trained[0], 1e-9), "steps/s", "estimate and warm-up's end included"
    )
    record.add(f"{name}: images in the set", images, "", f"of {1000 * per_class} wanted")
    record.add(f"{name}: emission", images / max(seconds - trained[0], 1e-9), "images/s", f"refined for {refine} steps")


def _student(
    record: Record, images: Path, name: str, out: Path, bits: str, recipe: dict[str, Any], scale: float, device: torch.device
) -> None:
    asked = {"cuda_graphs": device.type == "cuda", "workers": 0 if record.rehearsal else 8, **recipe}
    if recipe != CALIBRATED:
        asked |= {"reconstruct_steps": max(20, int(scale * 100)), "epochs": 1 if scale < 1 else 2, "steps_per_epoch": 40}
    if record.rehearsal:
        asked |= {"calibration_images": 8, "reconstruct_images": 8, "batch_size": 4, "reconstruct_batch_size": 4}
        asked |= {} if recipe == CALIBRATED else {"reconstruct_steps": 1, "epochs": 1, "steps_per_epoch": 1}
    begin = time.monotonic()
    quant = {"bits": bits} | ({"range": "minmax"} if record.rehearsal else {})
    flags = {"quant": quant, "recipe": asked, "output": {"report": False}}
    result = finetune_commands.finetune(Request(flags, out, out / f"student-{bits}", images))
    how = (
        "calibrated alone"
        if recipe == CALIBRATED
        else f"{asked['reconstruct_steps']} steps a block, {asked['epochs']} x 40 steps"
    )
    record.add(f"{name}, {bits}: student and evaluation", time.monotonic() - begin, "s", how)
    for which in ("teacher", "student"):
        low, high = result[which]["top1_interval"]
        note = f"{result[which]['images']} photographs, 95 % {low:.1f} to {high:.1f}; {how}"
        record.add(f"{name}, {bits}: {which} top-1", result[which]["top1"], "%", note)
    record.add(f"{name}, {bits}: evaluation", result["teacher"]["images_per_second"], "images/s", "the teacher alone, float32")


def _reading(record: Record, teacher: TeacherConfig, name: str, out: Path, device: torch.device) -> None:
    """Measure the decoding of shards against the images that a fine-tuning step uses in the same time."""
    batch_size = 4 if record.rehearsal else 128
    dataset = ShardDataset(ShardSet.open(out), "train")
    spec = dataset.spec
    sizes: dict[str, object] = {"input_size": spec.size, "in_channels": spec.channels, "num_classes": spec.num_classes}
    sizes |= {"mean": spec.mean, "std": spec.std}
    steps = finetune_steps(Setup(teacher.arch, batch_size, "auto", sizes=sizes), "w4a4")
    taken = time_step(steps["fine-tuning, w4a4"], device, seconds=0.5, together=1 if record.rehearsal else 5)
    rate = batch_size / (taken.milliseconds / 1e3)
    record.add(f"{name}: a fine-tuning step takes", rate, "images/s", f"batch {batch_size}, stored logits")
    order = [list(range(start, min(start + 64, len(dataset)))) for start in range(0, min(len(dataset), DECODED), 64)]
    for workers in (0,) if record.rehearsal else (0, 8, 16):
        passed = iter(batches(dataset, order, workers=workers))
        # Workers start with the first batch, which is not part of the rate.
        next(passed)
        begin = time.monotonic()
        count = sum(len(batch.labels) for batch in passed)
        decoded = count / (time.monotonic() - begin)
        record.add(f"{name}: decoding, {workers} workers", decoded, "images/s")
        record.add(f"{name}: decoding, {workers} workers, over what a step takes", decoded / rate, "x")
