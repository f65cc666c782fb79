"""`clusterq-finetune benchmark`: bytes, latency, kernels and accuracy of an exported file, beside its float export."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.export.description import Description
from clusterq_common.export.openvino_model import OpenVinoModel
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.export.targets import RuntimeName
from clusterq_common.files import atomic_write, need_place, sha256_file
from clusterq_common.images.normalise import normalise
from clusterq_common.progress.console import progress, warn
from clusterq_common.run.environment import versions
from clusterq_common.run.extras import need
from clusterq_common.run.folder_lock import only_program
from clusterq_common.run.run_folder import BENCHMARK
from clusterq_common.run.seeding import stream
from clusterq_common.shards.manifest import SplitName
from clusterq_common.shards.read import ShardSet
from clusterq_finetune.benchmark.kernels import integer_layers, integer_share, kernels_of
from clusterq_finetune.benchmark.request import DEFAULT_TIMING, NO_FLOAT, FloatSource, Timing
from clusterq_finetune.benchmark.timing import LEAST_TURNS, median_of, ratio_of, take_turns
from clusterq_finetune.evaluation.evaluate import TEACHER, evaluate_models
from clusterq_finetune.evaluation.real_images import RealImages
from clusterq_finetune.evaluation.summary import add_evaluation, top1_so_far

# Names of the two files in results.
FILE, FLOAT = "file", "float"
# Synthetic images looked at, with --shards.
MOST_SYNTHETIC = 2048
BATCH = 64
# Extra that brings each runtime.
EXTRAS: dict[RuntimeName, str] = {"onnxruntime": "onnx", "openvino": "openvino"}
# Batch sizes that are timed unless others are asked for.
BATCHES = (1, 16)


def benchmark(
    path: Path,
    beside: FloatSource = NO_FLOAT,
    timing: Timing = DEFAULT_TIMING,
    *,
    real: RealImages | None = None,
    shards: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure an exported ONNX file in a runtime on this machine's CPU. Returns the result, which is written where asked.

    Args:
        path: a file that clusterq exported.
        beside: what it is measured beside.
        timing: how both are run and timed.
        real: real images to evaluate on.
        shards: synthetic images to evaluate on.
        out: JSON file of the result.

    Raises:
        ClusterqError: see `OnnxModel`, `OpenVinoModel`, `float_export`, `open_validation`; arguments that do not belong together.
    """
    if timing.turns < LEAST_TURNS:
        raise ClusterqError(f"--turns: {timing.turns} is too few for an interval, expected {LEAST_TURNS} or more.")
    need_place("out", out)
    _refuse_unused(beside)
    threads = timing.threads or torch.get_num_threads()
    models, sizes = _load(path, beside, threads, timing.runtime)
    about = models[FILE].description
    sizes_timed = _sizes_timed(about, timing.batches)
    result: dict[str, Any] = {
        "file": {"path": str(path), "sha256": sha256_file(path), "bits": about.bits, "target": about.target},
        "float": None if FLOAT not in models else {"from": str(beside.file or beside.student)},
        "bytes": sizes,
        "runtime": timing.runtime,
        "threads": threads,
        "processor": _processor(),
        "versions": {**versions(), timing.runtime: _version_of(timing.runtime)},
        "turns": timing.turns,
        "latency": _latency(models, about, sizes_timed, timing.turns),
        "kernels": {name: _kernels(one, about, threads) for name, one in models.items()},
    }
    if real is not None:
        result["real_images"] = _on_real(models, about, real)
    if shards is not None:
        result["synthetic_images"] = _on_synthetic(models, about, ShardSet.open(shards))
    _keep(result, out, beside.student)
    return result


def _load(path: Path, beside: FloatSource, threads: int, runtime: RuntimeName) -> tuple[dict[str, OnnxModel], dict[str, int]]:
    """Return the file and the float one, where there is any, in the runtime, and their bytes."""

    def loaded(source: Path | bytes, name: str, like: Description | None = None) -> OnnxModel:
        if runtime == "openvino":
            return OpenVinoModel(source, threads=threads, name=name, like=like)
        return OnnxModel(source, threads=threads, name=name, like=like)

    need(runtime, f"--runtime {runtime}", EXTRAS[runtime])
    model = loaded(path, "MODEL")
    about = model.description
    models, sizes = {FILE: model}, {FILE: path.stat().st_size}
    if beside.file is not None:
        models[FLOAT] = loaded(beside.file, "--float", about)
        sizes[FLOAT] = beside.file.stat().st_size
        _same_images(about, models[FLOAT].description, beside.file)
    elif beside.student is not None:
        from clusterq_finetune.benchmark.float_export import float_export

        data = float_export(beside.student, about, dict(beside.teacher))
        models[FLOAT], sizes[FLOAT] = loaded(data, "--student"), len(data)
    return models, sizes


def _keep(result: dict[str, Any], out: Path | None, student: Path | None) -> None:
    """Write the result where it was asked for, and into the student's run for its report."""
    text = json.dumps(result, indent=2) + "\n"
    if out is not None:
        atomic_write(out, text)
    if student is not None and not os.access(student, os.W_OK):
        warn(f"{student} is read-only, so its report will not have these figures; --out FILE keeps them.")
    elif student is not None:
        with only_program(student):
            atomic_write(student / BENCHMARK, text)


def _refuse_unused(beside: FloatSource) -> None:
    """Raise ClusterqError for an argument that another one leaves without effect."""
    if not beside.teacher:
        return
    given = next(iter(beside.teacher))
    if beside.file is not None:
        raise ClusterqError(f"--{given}: --float names the float file, expected no teacher to make one from; leave it out.")
    if beside.student is None:
        raise ClusterqError(f"--{given}: there is no --student, expected one whose teacher it is; leave it out.")


def _sizes_timed(about: Description, batches: Sequence[int] | None) -> list[int]:
    """Return the batch sizes that are timed.

    Raises:
        ClusterqError: the file takes another number of images.
    """
    fixed = about.fixed_batch
    if fixed is None:
        return list(batches or BATCHES)
    if batches and set(batches) != {fixed}:
        raise ClusterqError(
            f"--batch: found {', '.join(map(str, batches))}, but the file takes {fixed} images at once; leave it out."
        )
    return [fixed]


def _same_images(about: Description, other: Description, path: Path) -> None:
    if other.input != about.input:
        raise ClusterqError(
            f"--float: {path} takes {other.input.model_dump()}, the file {about.input.model_dump()}, expected the same images and classes; "
            "export both from one teacher."
        )


def _noise(about: Description, count: int) -> Tensor:
    """Return images of random pixels, normalised."""
    shape = (count, *about.input.example().shape[1:])
    return normalise(torch.randint(256, shape, generator=stream(0, "benchmark"), dtype=torch.uint8), about.input)


def _latency(models: Mapping[str, OnnxModel], about: Description, sizes: Sequence[int], turns: int) -> list[dict[str, Any]]:
    """Time a call of each file at each batch size, its input at hand."""
    results: list[dict[str, Any]] = []
    with progress("timing", turns * len(sizes)) as ticker:
        for size in sizes:
            images = {name: model.feed(_noise(about, size)) for name, model in models.items()}
            actions = {name: partial(model.run, images[name]) for name, model in models.items()}
            seconds = take_turns(actions, turns, lambda: ticker.advance(1))
            medians = {name: median_of(values) for name, values in seconds.items()}
            row: dict[str, Any] = {
                "batch": size,
                "milliseconds": {name: [1000 * value for value in one] for name, one in medians.items()},
                "images_per_second": {name: size / one.median for name, one in medians.items()},
            }
            if FLOAT in models:
                row["ratio"] = list(ratio_of(seconds[FILE], seconds[FLOAT]))
            results.append(row)
    return results


def _kernels(model: OnnxModel, about: Description, threads: int) -> dict[str, Any]:
    kernels = kernels_of(model, model.feed(_noise(about, about.fixed_batch or 1)), threads)
    integer, layers = integer_layers(kernels)
    return {
        "integer_share": integer_share(kernels),
        "integer_layers": integer,
        "layers": layers,
        "kernels": [kernel.model_dump() for kernel in kernels],
    }


def _on_real(models: Mapping[str, OnnxModel], about: Description, real: RealImages) -> dict[str, Any]:
    """Evaluate on real images. The float file stands where a teacher does: agreement is with it."""
    images = real.open(about.input, about.geometry)
    ordered = {TEACHER if name == FLOAT else name: models[name] for name in (FLOAT, FILE) if name in models}
    with progress("evaluating", len(images), images=1) as ticker:
        results = evaluate_models(
            ordered,
            images,
            device=torch.device("cpu"),
            batch_size=BATCH,
            progress=lambda done, _, top1: ticker.advance(done - ticker.done, top1_so_far(top1)),
        )
    result: dict[str, Any] = {name: {} for name in ordered}
    add_evaluation(result, results, images, about.input)
    return {FLOAT if name == TEACHER else name: values for name, values in result.items()}


@torch.inference_mode()
def _on_synthetic(models: Mapping[str, OnnxModel], about: Description, shards: ShardSet) -> dict[str, Any]:
    """Compare both files with the labels of a set's held-out images, or of the training images where none are held out."""
    split: SplitName = "heldout" if "heldout" in shards.manifest.splits else "train"
    theirs = shards.manifest.teacher.spec
    if theirs != about.input:
        raise ClusterqError(
            f"--shards: they hold {theirs.model_dump()}, the file takes {about.input.model_dump()}, expected the same; use the set that the "
            "student learned from."
        )
    reader = shards.split(split)
    count = min(len(reader), MOST_SYNTHETIC)
    right, agreed = dict.fromkeys(models, 0), 0
    for start in range(0, count, BATCH):
        read = [reader.read(number)[:2] for number in range(start, min(start + BATCH, count))]
        pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in read])
        labels = torch.tensor([label for _, label in read])
        named = {name: model(normalise(pixels, theirs)).argmax(1) for name, model in models.items()}
        for name, classes in named.items():
            right[name] += int((classes == labels).sum())
        agreed += int((named[FILE] == named.get(FLOAT, labels)).sum())
    result: dict[str, Any] = {"split": split, "images": count}
    result |= {name: {"names_the_label": 100 * hits / count} for name, hits in right.items()}
    if FLOAT in models:
        result[FILE]["agreement"] = 100 * agreed / count
    return result


def _version_of(runtime: RuntimeName) -> str:
    """Return the version of the package that ran the files, without what OpenVINO adds on its build."""
    found: str = need(runtime, "benchmark", EXTRAS[runtime]).__version__
    return found.partition("-")[0]


def _processor() -> str:
    """Return the processor's name, as Linux or Python has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
