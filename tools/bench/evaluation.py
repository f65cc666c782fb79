"""Measure the speed of reading and evaluating real images, and check that 50,000 of them take no more memory than a thousand.

    python tools/bench/evaluation.py stream --images imagenet-like/val
    python tools/bench/evaluation.py speed --weights resnet20_cifar10.safetensors --val cifar10/test

stream: class folders of hard links to a few real photographs (so the disk is not measured), through `open_validation` and a
loader, without a network; in a fresh process for each number of workers. speed: evaluating the teacher and a quantized student, and
setting that student's ranges, against the teacher's forward pass on batches that lie ready, in interleaved repeats, medians of the ratios within a repeat.
Linux: memory is read from /proc.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from interleaved import ratio
from PIL import Image
from torch.utils.data import DataLoader, Subset

from clusterq_cli.main import run_guarded
from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert
from clusterq_common.teacher.load import load_teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_finetune.data.real import ValidationImages, open_validation
from clusterq_finetune.evaluation.evaluate import evaluate_models

IMAGENET = InputSpec(size=224, channels=3, num_classes=1000, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Number of images after which the memory at the start is read; by then every buffer is in use.
WARM = 1000
BATCH = 64

app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def stream(
    images: Annotated[Path, typer.Option(help="Photographs in folders named by wnid.")],
    count: Annotated[int, typer.Option(min=2 * WARM, help="Images to read.")] = 50_000,
    total: Annotated[int, typer.Option(min=1, help="Images in the folder that is built.")] = 50_000,
    workers: Annotated[list[int], typer.Option(help="Decoding processes; may be given several times.")] = [0, 2],  # noqa: B006
    folder: Annotated[Path | None, typer.Option(help="Folder to build it in, on the file system of --images.")] = None,
) -> None:
    """Read many photographs without a network: images/s and memory."""

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            sources = link(images, Path(name), total)
            print(
                f"{total} hard links to {sources} photographs; {min(count, total)} of them read, {IMAGENET.size} x {IMAGENET.size}"
            )
            for number in workers:
                command = [sys.executable, __file__, "stream-child", name, str(min(count, total)), str(number)]
                found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
                print(
                    f"workers {number}: {found['images_per_second']:.0f} images/s, {found['unreadable']} unreadable; peak memory after "
                    f"{WARM} images and at the end, MiB: main {found['main'][0]:.0f} -> {found['main'][1]:.0f}"
                    + "".join(f", worker {one:.0f} -> {two:.0f}" for one, two in zip(*found["workers"], strict=True)),
                    flush=True,
                )

    run_guarded(run, debug=False)


def link(images: Path, folder: Path, total: int) -> int:
    """Fill `folder` with `total` hard links to the photographs in turn. Returns the number of photographs."""
    sources = sorted(path for path in images.glob("*/*") if path.is_file())
    if not sources:
        raise ClusterqError(f"--images: {images} holds no class folders with images, expected wnid folders; check the path.")
    for name in {source.parent.name for source in sources}:
        (folder / name).mkdir()
    try:
        for number in range(total):
            source = sources[number % len(sources)]
            os.link(source, folder / source.parent.name / f"{number:05d}{source.suffix}")
    except OSError as error:
        raise ClusterqError(
            f"--folder: {images} cannot be linked to from {folder} ({error.strerror}), expected one file system; pass --folder on that of "
            "the images."
        ) from error
    return len(sources)


@app.command(hidden=True)
def stream_child(folder: Path, count: int, workers: int) -> None:
    """One measurement of `stream`, as JSON on stdout."""
    images = open_validation(folder, IMAGENET)
    spread = torch.linspace(0, len(images) - 1, count).long().tolist()
    loader = DataLoader(Subset(images.samples(), spread), batch_size=BATCH, num_workers=workers, collate_fn=images.collate)
    seen = unreadable = 0
    peaks: list[list[float]] = []
    begin = time.perf_counter()
    for batch in loader:
        seen += len(batch.labels) + len(batch.unreadable)
        unreadable += len(batch.unreadable)
        if seen == count or (not peaks and seen >= WARM):
            # The loader's processes run until the loop requests a batch after the last one.
            peaks.append([peak(os.getpid()), *(peak(child.pid) for child in active_children() if child.pid)])
    seconds = time.perf_counter() - begin
    main, children = zip(*((values[0], values[1:]) for values in peaks), strict=True)
    print(json.dumps({"images_per_second": count / seconds, "unreadable": unreadable, "main": main, "workers": children}))


def peak(process: int) -> float:
    """Return the peak resident memory of a process, MiB."""
    [line] = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


@app.command()
def speed(
    weights: Annotated[str, typer.Option(help="The teacher's weights.")],
    val: Annotated[Path, typer.Option(help="Real images for it.")],
    arch: Annotated[str, typer.Option(help="The teacher.")] = "resnet20_cifar10",
    bits: Annotated[str, typer.Option(help="Of the student; its ranges are set on the images, for want of shards.")] = "w4a4",
    count: Annotated[int, typer.Option(min=1, help="Images in a repeat.")] = 2000,
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Evaluation of a teacher and a student against a bare forward pass."""

    def run() -> None:
        torch.set_num_threads(threads or torch.get_num_threads())
        teacher = load_teacher(TeacherConfig(arch=arch, weights=weights))
        images = open_validation(val, teacher.spec)
        some = Part(images, count)
        ready = [
            normalise(
                some.collate([some.sample(n) for n in range(at, min(at + BATCH, len(some)))]).pixels, teacher.spec
            ).contiguous(memory_format=torch.channels_last)
            for at in range(0, len(some), BATCH)
        ]
        config = QuantConfig(bits=bits)
        student = convert(teacher.model, config, ready[0][:1], print).eval()
        calibrate(student, ready[:4], config)

        def forward() -> None:
            with torch.inference_mode():
                for batch in ready:
                    teacher.model(batch)

        def evaluated(name: str, model: torch.nn.Module) -> None:
            network.setdefault(name, []).append(
                evaluate_models({name: model}, some, device=torch.device("cpu"), batch_size=BATCH)[name].images_per_second
            )

        network: dict[str, list[float]] = {}
        actions: dict[str, Callable[[], None]] = {
            "bare forward": forward,
            "teacher": lambda: evaluated("teacher", teacher.model),
            "student": lambda: evaluated("student", student),
            "calibration": lambda: calibrate(convert(teacher.model, config, ready[0][:1], lambda _: None), ready, config),
        }
        whole: dict[str, list[float]] = {name: [] for name in actions}
        for action in actions.values():
            action()  # warm
        network.clear()
        for _ in range(repeats):
            for name, action in actions.items():
                begin = time.perf_counter()
                action()
                whole[name].append(len(some) / (time.perf_counter() - begin))
        print(f"{len(some)} images, batch {BATCH}, {torch.get_num_threads()} threads, medians of {repeats} interleaved repeats")
        print_speeds(whole, network)

    run_guarded(run, debug=False)


def print_speeds(whole: dict[str, list[float]], network: dict[str, list[float]]) -> None:
    """Print the medians of all actions, in images/s, and the ratios of interest.

    Args:
        whole: by action, images/s with all that belongs to it.
        network: by evaluated model, images/s through the network alone.
    """
    for name, values in whole.items():
        print(f"{name:<13} {median(values):7.0f} images/s" + (", all included" if name in network else ""))
    for name, values in network.items():
        print(f"{name:<13} {median(values):7.0f} images/s in the network")
    print(f"teacher evaluated / bare forward: {ratio(whole['teacher'], whole['bare forward']):.2f}")
    print(f"teacher in the network / bare forward: {ratio(network['teacher'], whole['bare forward']):.2f}")
    print(f"student evaluated / teacher evaluated: {ratio(whole['student'], whole['teacher']):.2f}")
    print(f"student in the network / teacher in the network: {ratio(network['student'], network['teacher']):.2f}")
    print(f"calibration / bare forward: {ratio(whole['calibration'], whole['bare forward']):.2f}")


class Part(ValidationImages):
    """Every n-th image of a set, so that all classes are among them."""

    def __init__(self, images: ValidationImages, count: int) -> None:
        self.images, self.chosen = images, range(0, len(images), max(1, len(images) // count))[:count]
        super().__init__(images.root, images.layout, [images.labels[n] for n in self.chosen], images.spec)

    def name(self, index: int) -> str:
        return self.images.name(self.chosen[index])

    def open(self, index: int) -> Image.Image:
        return self.images.open(self.chosen[index])


if __name__ == "__main__":
    app()
