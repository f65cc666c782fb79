"""Stage "paper-cifar": CIFAR-10's ResNet-20 from the generator to students, on `quick`'s budget and on a share of the paper's."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from packed import Pack
from record import Record
from setups import GeneratorStep, Setup
from thin import thinned
from timing import time_step

from clusterq_common.device.setup import prepare_device
from clusterq_finetune import commands as finetune_commands
from clusterq_finetune.prepare import Request
from clusterq_gen import commands as gen_commands
from clusterq_gen.presets import resolve

PAPER_EPOCHS, PAPER_STEPS = 400, 200
# Share of the stage's time for the generator; the rest is for shards, students and evaluation.
TRAINING_SHARE = 0.6
BITS = ("w4a4", "w3a3")
# Number of images for evaluation in a rehearsal.
FEW = 100


def run(record: Record, pack: Pack, work: Path) -> None:
    """Make a set and two students with the `quick` preset, then with the paper's. Each is evaluated on the 10,000 test images."""
    teacher = pack.teacher("resnet20_cifar10")
    device = prepare_device(Setup(teacher.arch, 200).runtime)
    graphs, small = device.type == "cuda", record.rehearsal
    images = thinned(pack.cifar10, FEW, work) if small else pack.cifar10

    def made(preset: str, budget: str, train: dict[str, Any], emit: dict[str, Any]) -> None:
        out = work / preset

        def generate() -> None:
            flags: dict[str, dict[str, Any]] = {
                "teacher": teacher.model_dump(),
                "train": {"cuda_graphs": graphs, **train, **({"batch_size": 20} if small else {})},
                "emit": {"keep_misclassified": small, "workers": 0 if small else 8, **emit},
                "quant": {"range": "minmax"} if small else {},
                "output": {"report": False},
            }
            begin = time.monotonic()
            config = resolve(flags, preset, imagenet_sized=False)
            gen_commands.train(config, out, resume=False, overwrite=False, dry_run=False)
            record.add(f"{preset}: generator and shards", time.monotonic() - begin, "s", budget)

        record.part(f"{preset}: generator and shards", generate, needs=15)
        for bits in BITS:
            student = partial(_student, record, images, out, preset, bits, budget, graphs=graphs)
            record.part(f"{preset}: student {bits}", student, needs=15)

    few = {"per_class": 2, "refine_steps": 1}
    made("quick", "the preset's", {"epochs": 4, "steps_per_epoch": 1} if small else {}, few if small else {})
    if small:
        return  # the paper's path is the same, with other numbers
    steps = _steps_that_fit(record, teacher.arch)
    whole = steps == PAPER_STEPS
    budget = f"{PAPER_EPOCHS} epochs x {steps} steps" + ("" if whole else f": not the paper's {PAPER_EPOCHS} x {PAPER_STEPS}")
    made("paper-cifar", budget, {"steps_per_epoch": steps}, {"per_class": 512})


def _steps_that_fit(record: Record, arch: str) -> int:
    """Return the number of steps an epoch, of the paper's 200, for which the stage has time."""
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


def _student(record: Record, images: Path, shards: Path, preset: str, bits: str, budget: str, *, graphs: bool) -> None:
    recipe: dict[str, Any] = {"cuda_graphs": graphs}
    if record.rehearsal:
        recipe |= {"reconstruct_steps": 2, "epochs": 1, "steps_per_epoch": 1, "batch_size": 8, "calibration_images": 16}
        recipe |= {"reconstruct_batch_size": 8}
    begin = time.monotonic()
    quant = {"bits": bits} | ({"range": "minmax"} if record.rehearsal else {})
    flags = {"quant": quant, "recipe": recipe, "output": {"report": False}}
    folder = shards / f"student-{bits}"
    result = finetune_commands.finetune(Request(flags, shards, folder, images))
    record.add(f"{preset}, {bits}: student and evaluation", time.monotonic() - begin, "s")
    for name in ("teacher", "calibrated", "student"):
        low, high = result[name]["top1_interval"]
        note = f"{result[name]['images']} images, 95 % {low:.2f} to {high:.2f}; generator: {budget}"
        record.add(f"{preset}, {bits}: {name} top-1", result[name]["top1"], "%", note)
