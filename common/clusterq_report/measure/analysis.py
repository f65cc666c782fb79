"""Measurements with the networks on a few hundred stored images: analysis.json."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.files import atomic_write, sha256_file
from clusterq_common.images.normalise import normalise
from clusterq_common.run.run_folder import ANALYSIS, STUDENT
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.split_reader import SplitReader
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec
from clusterq_report.measure.costs import layer_costs
from clusterq_report.measure.features import BatchNormDistances, Scatter
from clusterq_report.measure.layers import quantized_layers
from clusterq_report.measure.measuring_batch import measuring_batch
from clusterq_report.sample_selection import first_of_classes, first_shards, spread_classes

# Number of images, evenly over the set, for all measurements except scatter. For scatter: classes, and images of each.
IMAGES = 256
CLASSES, IMAGES_OF_A_CLASS = 16, 16
# Seconds of drawing a report, about.
DRAWING = 3.0


def write_analysis(folder: Path, teacher: Teacher, student: nn.Module | None, shards: ShardSet, device: torch.device) -> None:
    """Measure, and write analysis.json into a run's folder atomically.

    Args:
        folder: folder of the run, with the saved student.
        teacher: on `device`.
        student: its low-bit copy on `device`, or None where the run made none.
        shards: shards that the run made or learned from.
        device: device of the networks.

    Raises:
        ClusterqError: the shards cannot be read.
    """
    analysis = analyse(teacher, student, shards, device)
    if student is not None:
        analysis["student"] = sha256_file(folder / STUDENT)
    atomic_write(folder / ANALYSIS, json.dumps(_rounded(analysis)) + "\n")


def report_seconds(samples: int, forward: float, student_forward: float) -> float:
    """Return the expected seconds of measuring a run and drawing its report.

    Args:
        samples: training images of its set.
        forward, student_forward: seconds of one image through teacher and student.
    """
    # The teacher sees the images for the statistics, for the scatter and beside the student.
    return DRAWING + min(IMAGES, samples) * (3 * forward + student_forward)


@torch.no_grad()
def analyse(teacher: Teacher, student: nn.Module | None, shards: ShardSet, device: torch.device) -> dict[str, Any]:
    """Measure the distance of the images' BatchNorm statistics, the scatter of classes, costs, and quantization errors, all by layer.

    Networks run in eval mode and float32 and are restored afterwards. The same networks and images give the same figures.
    """
    reader, spec = first_shards(shards), teacher.spec
    even = [number * len(reader) // IMAGES for number in range(IMAGES)] if len(reader) > IMAGES else list(range(len(reader)))
    classes = spread_classes(shards.manifest.splits["train"].per_class, CLASSES)
    grouped = first_of_classes(reader, classes, IMAGES_OF_A_CLASS)
    numbers = [number for own in grouped.values() for number in own]
    labels = torch.tensor([label for label, own in grouped.items() for _ in own], device=device)

    teacher.model.eval()
    with torch.autocast(device.type, enabled=False):
        distances, scatter = BatchNormDistances(teacher.model), Scatter(labels)
        with batchnorm_taps(teacher.model) as taps:
            for images in _batches(reader, even, spec, device):
                teacher.model(images)
                distances.add(taps)
            for images in _batches(reader, numbers, spec, device):
                teacher.model(images)
                scatter.add(taps)
        example = torch.zeros(1, *spec.shape, device=device)
        layers: dict[str, Any] = {"layers": layer_costs(teacher.model, example)}
        if student is not None:
            layers |= quantized_layers(teacher.model, student.eval(), _batches(reader, even, spec, device), example)
    return {
        "teacher": teacher.digest,
        "shards": shards.manifest.digest,
        "images": len(even),
        "scatter_classes": len([own for own in grouped.values() if own]),
        "scatter_images": len(numbers),
        "batchnorm": distances.result(),
        "scatter": scatter.result(distances.scales),
        **layers,
    }


def _batches(reader: SplitReader, numbers: list[int], spec: InputSpec, device: torch.device) -> Iterator[Tensor]:
    """Yield normalised images (N, C, H, W) on the device, a batch at a time."""
    # The outputs of every layer, of teacher and student, are held for one batch, so batches are half as large.
    size = measuring_batch(spec) // 2
    for start in range(0, len(numbers), size):
        pixels = [torch.from_numpy(reader.read(number)[0]) for number in numbers[start : start + size]]
        batch = torch.stack(pixels).permute(0, 3, 1, 2).to(device)
        yield normalise(batch, spec).contiguous(memory_format=torch.channels_last)


def _rounded(value: Any) -> Any:
    """Return a value rounded to six significant digits, which keeps the file small."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
