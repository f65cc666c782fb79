"""Stage "paper-cifar": the paper's budget on CIFAR-10's ResNet-20, or as much of it as fits, from the generator to students."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from packed import Pack
from record import Record
from setups import GeneratorStep, Setup
from thin import thinned
from timing import time_step

from clusterq_common.runtime.device import prepare_device
from clusterq_finetune import commands as finetune_commands
from clusterq_gen import commands as gen_commands
from clusterq_gen.presets import resolve

PAPER_EPOCHS, PAPER_STEPS = 400, 200
# Of the stage's time, for the generator; the rest is for shards, students and evaluation.
TRAINING_SHARE = 0.6
BITS = ("w4a4", "w3a3")
# Images that a rehearsal evaluates on.
FEW = 100


def run(record: Record, pack: Pack, work: Path) -> None:
    """Train the generator, write shards, make a student for each bit-width and evaluate it on the 10,000 test images."""
    teacher = pack.teacher("resnet20_cifar10")
    out = work / "paper-cifar"
    device = prepare_device(Setup(teacher.arch, 200).runtime)
    graphs = device.type == "cuda"
    steps = 2 if record.rehearsal else _steps_that_fit(record, teacher.arch)
    epochs = 4 if record.rehearsal else PAPER_EPOCHS
    whole = steps == PAPER_STEPS and epochs == PAPER_EPOCHS
    budget = f"{epochs} epochs x {steps} steps" + ("" if whole else f": not the paper's {PAPER_EPOCHS} x {PAPER_STEPS}")
    small = record.rehearsal

    def train() -> None:
        flags: dict[str, dict[str, Any]] = {
            "teacher": teacher.model_dump(),
            "train": {
                "epochs": epochs,
                "steps_per_epoch": steps,
                "cuda_graphs": graphs,
                **({"batch_size": 20} if small else {}),
            },
            "emit": {"per_class": 4 if small else 512, "keep_misclassified": small, "workers": 0 if small else 8},
            "quant": {"range": "minmax"} if small else {},
            "output": {"report": False},
        }
        begin = time.monotonic()
        config = resolve(flags, "paper-cifar", imagenet_sized=False)
        gen_commands.train(config, out, resume=False, overwrite=False, dry_run=False)
        record.add("generator and shards", time.monotonic() - begin, "s", budget)

    record.part("generator and shards", train)
    images = thinned(pack.cifar10, FEW, work) if small else pack.cifar10
    for bits in BITS:
        record.part(f"student {bits}", partial(_student, record, images, out, bits, budget, graphs=graphs), needs=15)


def _steps_that_fit(record: Record, arch: str) -> int:
    """Steps an epoch, of the paper's 200, that the stage has time for."""
    setup = Setup(arch, 200, "auto")
    device = prepare_device(setup.runtime)
    graphs = device.type == "cuda"
    step = GeneratorStep(setup.training("clusterq", setup.warm_state(["clusterq"]), {"cuda_graphs": graphs}), graphs=graphs)
    milliseconds = time_step(step, device, seconds=1.5).milliseconds
    step.close()
    record.add(
        "a step of the paper's training", milliseconds, "ms", "after warm-up, CUDA graphs" if graphs else "after warm-up"
    )
    record.add("the paper's 80,000 steps at that rate", PAPER_EPOCHS * PAPER_STEPS * milliseconds / 6e4, "min")
    return max(1, min(PAPER_STEPS, int(record.left * TRAINING_SHARE / (PAPER_EPOCHS * milliseconds / 1e3))))


def _student(record: Record, images: Path, shards: Path, bits: str, budget: str, *, graphs: bool) -> None:
    recipe: dict[str, Any] = {"cuda_graphs": graphs}
    if record.rehearsal:
        recipe |= {"reconstruct_steps": 2, "epochs": 1, "steps_per_epoch": 1, "batch_size": 8, "calibration_images": 16}
    begin = time.monotonic()
    quant = {"bits": bits} | ({"range": "minmax"} if record.rehearsal else {})
    flags = {"quant": quant, "recipe": recipe, "output": {"report": False}}
    folder = shards / f"student-{bits}"
    result = finetune_commands.finetune(flags, shards, folder, images, None, resume=False, overwrite=False, dry_run=False)
    record.add(f"{bits}: student and evaluation", time.monotonic() - begin, "s")
    for name in ("teacher", "calibrated", "student"):
        low, high = result[name]["top1_interval"]
        note = f"{result[name]['images']} images, 95 % {low:.2f} to {high:.2f}; generator: {budget}"
        record.add(f"{bits}: {name} top-1", result[name]["top1"], "%", note)
