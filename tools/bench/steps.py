"""Measure the cost of both programs' steps, with random weights: speed does not depend on them.

    python tools/bench/steps.py generator --arch resnet20_cifar10 --batch-size 200
    python tools/bench/steps.py generator --arch resnet18 --batch-size 16
    python tools/bench/steps.py finetune --arch resnet20_cifar10 --batch-size 256 --compiled
    python tools/bench/steps.py refinement --arch resnet20_cifar10 --batch-size 100 --amp auto
    python tools/bench/steps.py memory --arch resnet20_cifar10 --batch-size 200

generator: a whole step after warm-up, the generator's and the student's, of methods beside each other and beside the step as the field's
released code writes it (plain.py). finetune: a step of distillation with stored logits beside a training step of the float network
at the same precision, and beside one with plain fake-quantization. refinement: a step on a batch of images
beside the network's convolutions and matrix products alone, forward and back to the images. Interleaved turns in one process, medians of ratios within a turn. memory: peak resident memory of a few steps, each kind in a fresh
process, beside that of one training step of the float networks that take part.
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Annotated

import torch
import typer
from interleaved import interleaved, table
from plain import PlainTraining
from setups import GeneratorStep, Setup, finetune_steps, float_networks, network_products, refinement_step

from clusterq_cli.main import run_guarded

Arch = Annotated[str, typer.Option(help="pytorchcv's name, or file.py:factory.")]
Batch = Annotated[int, typer.Option(min=1, help="Images in a batch.")]
Repeats = Annotated[int, typer.Option(min=1, help="Turns.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
Amp = Annotated[str, typer.Option(help="auto, off or bf16, as for the programs.")]

app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def generator(
    arch: Arch,
    batch_size: Batch,
    methods: Annotated[str, typer.Option(help="With commas between; the first is the reference.")] = "gdfq,clusterq",
    plain: Annotated[bool, typer.Option(help="Also the plain step of the last method.")] = True,
    compiled: Annotated[bool, typer.Option(help="Also the last method with compiled networks.")] = False,
    repeats: Repeats = 9,
    threads: Threads = None,
    amp: Amp = "off",
) -> None:
    """One step of generator and student."""

    def run() -> None:
        names, setup = methods.split(","), Setup(arch, batch_size, amp, threads)
        warm = setup.warm_state(names)
        actions: dict[str, Callable[[], object]] = {name: GeneratorStep(setup.training(name, warm)) for name in names}
        if compiled:
            actions[f"{names[-1]}, compiled"] = GeneratorStep(setup.training(names[-1], warm, {"compile": True}))
        if plain:
            actions[f"{names[-1]}, plain"] = PlainTraining(
                Setup(arch, batch_size, threads=threads).training(names[-1], warm)
            ).step
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
        actions = finetune_steps(Setup(arch, batch_size, amp, threads), bits, compiled=compiled)
        print(f"{arch}, batch {batch_size}, {torch.get_num_threads()} threads, amp {amp}, {repeats} turns")
        print(table(interleaved(actions, repeats), "float training"))

    run_guarded(run, debug=False)


@app.command()
def refinement(arch: Arch, batch_size: Batch, repeats: Repeats = 9, threads: Threads = None, amp: Amp = "off") -> None:
    """One step of refinement, beside the network's products alone."""

    def run() -> None:
        setup = Setup(arch, batch_size, amp, threads)
        actions = {
            "refinement": refinement_step(setup),
            "products, float32": network_products(setup, torch.float32),
            "products, bf16": network_products(setup, torch.bfloat16),
        }
        print(f"{arch}, batch {batch_size}, {torch.get_num_threads()} threads, amp {amp}, {repeats} turns")
        seconds = interleaved(actions, repeats)
        print(table(seconds, "products, float32"))
        print(f"{batch_size / median(seconds['refinement']):.0f} image-steps/s")

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
    setup = Setup(arch, batch_size, threads=threads or None)
    if kind in {"float training", "fine-tuning"}:
        action = next(step for name, step in finetune_steps(setup, "w4a4").items() if name.startswith(kind))
    elif kind == "float networks":
        action = float_networks(setup)
    elif kind != "libraries":
        action = GeneratorStep(setup.training(kind, setup.warm_state([kind])))
    for _ in range(0 if kind == "libraries" else 4):
        action()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    app()
