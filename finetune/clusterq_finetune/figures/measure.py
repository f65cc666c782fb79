"""Features of images in the teacher: one vector for each image and BatchNorm layer."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_report.measure.features import BatchNormDistances
from clusterq_report.measure.measuring_batch import measuring_batch

Array = np.ndarray[Any, np.dtype[np.float64]]
# Number of layers drawn by default.
FEW_LAYERS = 3


@torch.no_grad()
def channel_means(teacher: Teacher, pixels: Tensor, device: torch.device) -> dict[str, Array]:
    """Return the channel means of each image at the input of each BatchNorm layer, by layer in order of execution, (N, C).

    They are means over positions, less the running mean, in running standard deviations. Class centroids are made of the same
    means (ClusterQ, Eq. 4); here they are computed image by image.

    Args:
        teacher: on `device`.
        pixels: (N, C, H, W) uint8.
        device: device of the teacher.
    """
    size = measuring_batch(teacher.spec)
    scales = BatchNormDistances(teacher.model).scales
    rows: dict[str, list[Tensor]] = {}
    teacher.model.eval()
    with torch.autocast(device.type, enabled=False), batchnorm_taps(teacher.model) as taps:
        for start in range(0, len(pixels), size):
            batch = normalise(pixels[start : start + size].to(device), teacher.spec)
            teacher.model(batch.contiguous(memory_format=torch.channels_last))
            # For a layer that runs twice, the first pass counts.
            first = {moments.name: moments for moments in reversed(taps.moments)}
            for moments in taps:
                if first[moments.name] is moments:
                    rows.setdefault(moments.name, []).append((moments.first.double() / scales[moments.name]).cpu())
    return {name: torch.cat(batches).numpy() for name, batches in rows.items()}


@torch.no_grad()
def execution_order(teacher: Teacher, device: torch.device) -> list[str]:
    """Return the names of the BatchNorm layers, in order of execution."""
    spec = teacher.spec
    with batchnorm_taps(teacher.model) as taps:
        teacher.model.eval()(torch.zeros(1, *spec.shape, device=device))
        return list(dict.fromkeys(moments.name for moments in taps))


def chosen_layers(order: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Return layers by name or number, in order of execution; by default three of the deep half, including the last.

    >>> chosen_layers([f"bn{n}" for n in range(1, 20)], None), chosen_layers(["a", "b", "c"], ["3", "a"])
    (['bn10', 'bn14', 'bn19'], ['a', 'c'])

    Raises:
        ClusterqError: there is no such layer.
    """
    count = len(order)
    if wanted is None:
        half = (count + 1) // 2
        spread = (half + (count - half) * step // (FEW_LAYERS - 1) for step in range(FEW_LAYERS))
        return [order[number - 1] for number in dict.fromkeys(spread)]
    known = {name: name for name in order}
    if not any(name.isdigit() for name in order):
        # In a plain `nn.Sequential` layers have numbers as names, so only names are unambiguous.
        known |= {str(number): name for number, name in enumerate(order, 1)}
    for word in wanted:
        if word not in known:
            shown = ", ".join(f"{number}: {name}" for number, name in enumerate(order, 1))
            raise ClusterqError(
                f"found {word!r}, expected names{' or numbers' if len(known) > count else ''} of this teacher's {count} BatchNorm "
                f"layers ({shown}); choose among them.",
                setting="layers",
            )
    chosen = {known[word] for word in wanted}
    return [name for name in order if name in chosen]


def short_layer(name: str, order: Sequence[str]) -> str:
    """Return a layer's name without the prefix that all layers share, and its position.

    >>> short_layer("features.stage3.bn", ["features.stage1.bn", "features.stage3.bn"])
    'stage3.bn (2 of 2)'
    """
    place = f"({order.index(name) + 1} of {len(order)})"
    prefix = re.match(r"(?:[^.]+\.)*", name)
    shared = prefix.group() if prefix else ""
    while shared and not all(other.startswith(shared) for other in order):
        shared = shared.rstrip(".").rpartition(".")[0]
        shared += "." if shared else ""
    return f"{name.removeprefix(shared)} {place}"
