"""What the steps of both programs cost, with random weights: speed does not depend on them.

    python tools/bench/steps.py generator --arch resnet20_cifar10 --batch-size 200
    python tools/bench/steps.py generator --arch resnet18 --batch-size 16
    python tools/bench/steps.py finetune --arch resnet20_cifar10 --batch-size 256 --compiled
    python tools/bench/steps.py memory --arch resnet20_cifar10 --batch-size 200

generator: a whole step after warm-up, the generator's and the student's, of methods beside each other and beside the step as the field's
released code writes it (plain.py). finetune: a step of distillation with stored logits beside a training step of the float network
at the same precision, and beside one with plain fake-quantization. Interleaved turns in one process, medians of ratios within a turn. memory: peak resident memory of a few steps, each kind in a fresh
process, beside that of one training step of the float networks that take part.
"""

import copy
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from interleaved import interleaved, table
from plain import PlainTraining, plain_student

from clusterq_common.distill.objective import StudentObjective
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert, spare_memory
from clusterq_common.runtime.compiled import Compiled
from clusterq_common.runtime.config import RuntimeConfig
from clusterq_common.runtime.device import place, prepare_device, training_autocast
from clusterq_common.runtime.guard import run_guarded
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_gen.config import GenConfig, resolve
from clusterq_gen.loop import train_step
from clusterq_gen.training import Training

Arch = Annotated[str, typer.Option(help="pytorchcv's name, or file.py:factory.")]
Batch = Annotated[int, typer.Option(min=1, help="Images in a batch.")]
Repeats = Annotated[int, typer.Option(min=1, help="Turns.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
Amp = Annotated[str, typer.Option(help="auto, off or bf16, as for the programs.")]

Network = Callable[[torch.Tensor], torch.Tensor]

app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def generator(
    arch: Arch,
    batch_size: Batch,
    methods: Annotated[str, typer.Option(help="With commas between; the first is the reference.")] = "gdfq,clusterq",
    plain: Annotated[bool, typer.Option(help="Also the plain step of the last method.")] = True,
    compiled: Annotated[bool, typer.Option(help="Also the last method with a compiled student.")] = False,
    repeats: Repeats = 9,
    threads: Threads = None,
    amp: Amp = "off",
) -> None:
    """One step of generator and student."""

    def run() -> None:
        names = methods.split(",")
        warm = _warm_state(arch, names, batch_size, threads)
        actions: dict[str, Callable[[], object]] = {}
        for name in names:
            actions[name] = _generator_step(_training(arch, name, batch_size, threads, amp, warm))
        if compiled:
            own = _training(arch, names[-1], batch_size, threads, amp, warm)
            assert own.student is not None
            own.compiled_student = Compiled(own.student)
            actions[f"{names[-1]}, student compiled"] = _generator_step(own)
        if plain:
            actions[f"{names[-1]}, plain"] = PlainTraining(_training(arch, names[-1], batch_size, threads, "off", warm)).step
        print(f"{arch}, batch {batch_size}, {torch.get_num_threads()} threads, amp {amp}, {repeats} turns")
        print(table(interleaved(actions, repeats), names[0]))

    run_guarded(run, debug=False)


@app.command()
def finetune(
    arch: Arch,
    batch_size: Batch,
    bits: Annotated[str, typer.Option(help="Of the student.")] = "w4a4",
    repeats: Repeats = 9,
    compiled: Annotated[bool, typer.Option(help="Also both networks as torch.compile makes them.")] = False,
    threads: Threads = None,
    amp: Amp = "off",
) -> None:
    """One step of distillation, stored logits, no augmentation."""

    def run() -> None:
        actions = _finetune_steps(arch, batch_size, bits, threads, amp, compiled=compiled)
        print(f"{arch}, batch {batch_size}, {torch.get_num_threads()} threads, amp {amp}, {repeats} turns")
        print(table(interleaved(actions, repeats), "float training"))

    run_guarded(run, debug=False)


@app.command()
def memory(arch: Arch, batch_size: Batch, threads: Threads = None) -> None:
    """Peak memory of each step in a fresh process, and what part of it is not the interpreter and its libraries."""

    def run() -> None:
        peaks = {}
        for kind in ("libraries", "float training", "fine-tuning", "float networks", "gdfq", "clusterq"):
            command = [sys.executable, __file__, "memory-child", kind, arch, str(batch_size), str(threads or 0)]
            peaks[kind] = float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        print(f"{arch}, batch {batch_size}: peak MiB, and above that of the libraries alone")
        for kind, reference in (("fine-tuning", "float training"), ("gdfq", "float networks"), ("clusterq", "float networks")):
            own, other = (peaks[name] - peaks["libraries"] for name in (kind, reference))
            print(f"{kind:<14} {peaks[kind]:6.0f}, {own:6.0f}: {own / other:.2f} x {reference} ({other:.0f})")

    run_guarded(run, debug=False)


@app.command(hidden=True)
def memory_child(kind: str, arch: str, batch_size: int, threads: int) -> None:
    """Print the peak of this process, MiB."""
    chosen = threads or None
    if kind in {"float training", "fine-tuning"}:
        steps = _finetune_steps(arch, batch_size, "w4a4", chosen, "off")
        action = next(step for name, step in steps.items() if name.startswith(kind))
    elif kind == "float networks":
        action = _float_networks(arch, batch_size, chosen)
    elif kind != "libraries":
        action = _generator_step(
            _training(arch, kind, batch_size, chosen, "off", _warm_state(arch, [kind], batch_size, chosen))
        )
    for _ in range(0 if kind == "libraries" else 4):
        action()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _finetune_steps(
    arch: str, batch_size: int, bits: str, threads: int | None, amp: str, *, compiled: bool = False
) -> dict[str, Callable[[], None]]:
    """A training step of the float network, one of distillation, and that with plain fake-quantization; or also compiled."""
    runtime = RuntimeConfig.checked({"threads": threads, "amp": amp})
    device = prepare_device(runtime)
    teacher = _teacher(arch, device)
    images = torch.randn(batch_size, teacher.spec.channels, teacher.spec.size, teacher.spec.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % teacher.spec.num_classes
    with torch.no_grad():
        logits = teacher.model(images).float()
    config = QuantConfig(bits=bits)
    student = convert(teacher.model, config, images[:1], lambda _: None).eval()
    calibrate(student, [images[:64]], config)
    spare_memory(student)
    network = copy.deepcopy(teacher.model).train().requires_grad_(True)
    objective = StudentObjective(1.0, 20.0, 20.0)

    def distilled(model: Network) -> torch.Tensor:
        return torch.stack(list(objective(model(images), logits, labels).values())).sum()

    def stepping(owner: torch.nn.Module, model: Network, loss: Callable[[Network], torch.Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(owner.parameters(), lr=1e-6, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with training_autocast(runtime, device):
                value = loss(model)
            value.backward()
            optimizer.step()

        return step

    plain = plain_student(student)
    for model in (network, student, plain):
        place(model, device)

    def classified(model: Network) -> torch.Tensor:
        return F.cross_entropy(model(images), labels)

    steps = {
        "float training": stepping(network, network, classified),
        f"fine-tuning, {bits}": stepping(student, student, distilled),
        f"fine-tuning, {bits}, plain": stepping(plain, plain, distilled),
    }
    if compiled:
        steps["float training, compiled"] = stepping(network, Compiled(network), classified)
        steps[f"fine-tuning, {bits}, compiled"] = stepping(student, Compiled(student), distilled)
    return steps


def _teacher(arch: str, device: torch.device) -> Teacher:
    return load_teacher(TeacherConfig.checked({"arch": arch, "weights": "random"}), device=device)


def _warm_state(arch: str, methods: list[str], batch_size: int, threads: int | None) -> dict[str, Any]:
    """What one run holds right after warm-up, for all of them: at 1000 classes of 224x224 that alone takes minutes."""
    # With one image a class all classes are seen in fewer batches. What is measured has the settings' own number.
    runs = [_start(arch, method, batch_size, threads, "off", one_a_class=True) for method in methods]
    run = next((run for run in runs if run.method.needs_centroids), runs[0])
    run.end_warmup(lambda _: None)
    run.step = run.warmup_steps + 1
    return run.state_dict()


def _training(arch: str, method: str, batch_size: int, threads: int | None, amp: str, warm: dict[str, Any]) -> Training:
    """A run right after warm-up, with a copy of that state."""
    run = _start(arch, method, batch_size, threads, amp)
    state = copy.deepcopy(warm)
    run.load_state_dict(state if run.method.needs_centroids else {**state, "centroids": None})
    return run


def _start(arch: str, method: str, batch_size: int, threads: int | None, amp: str, *, one_a_class: bool = False) -> Training:
    flags: dict[str, dict[str, Any]] = {
        "teacher": {"arch": arch, "weights": "random"},
        "method": {"method": method},
        "train": {"batch_size": batch_size} | ({"classes_per_batch": batch_size} if one_a_class else {}),
        "runtime": {"threads": threads, "amp": amp},
    }
    runtime = RuntimeConfig.checked(flags["runtime"])
    device = prepare_device(runtime)
    teacher = _teacher(arch, device)
    config: GenConfig = resolve(flags, "auto", imagenet_sized=teacher.spec.size > 64)
    return Training.start(config, teacher, device)


def _generator_step(run: Training) -> Callable[[], None]:
    stored = run.stored_statistics()

    def step() -> None:
        with batchnorm_taps(run.teacher.model) as taps:
            train_step(run, taps, stored)
        run.step += 1

    return step


def _float_networks(arch: str, batch_size: int, threads: int | None) -> Callable[[], None]:
    """Generator through teacher, then a float student on the same images: what a step needs without any method."""
    run = _start(arch, "gdfq", batch_size, threads, "off")
    student = copy.deepcopy(run.teacher.model).requires_grad_(True)
    place(student, run.device)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        run.draws.begin(run.step)
        latent = run.inputs()
        images = run.generator(latent.z, latent.classes)
        F.cross_entropy(run.teacher.model(images), latent.labels).backward()
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(student(images.detach()), latent.labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    app()
