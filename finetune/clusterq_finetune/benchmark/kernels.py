"""Kernels that a runtime runs for a file, from its own profile: which compute in integers, and their share of the time."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from clusterq_common.export.openvino_model import OpenVinoModel
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.export.weights import Array
from clusterq_common.settings import Settings

RUNS = 5
# Types of integers in a profile, and operators that are layers: those whose time matters and that have weights.
INTEGERS = {"int8", "uint8"}
LAYERS = ("Conv", "Gemm", "MatMul", "FullyConnected")
# These read integers and write float, with the products in integers.
FLOAT_OUTPUT = ("MatMulInteger", "ConvInteger")
# Endings of the names of OpenVINO's integer kernels.
OPENVINO_INTEGERS = ("_i8", "_u8")


class Kernel(Settings):
    """All calls of one kind of kernel in a run of the network.

    Attributes:
        operator: the runtime's name.
        integers: it computes in 8-bit integers.
        layer: it is a convolution or a matrix product.
        calls: in one run.
        share: of the time of all kernels, 0 to 1.
    """

    operator: str
    integers: bool
    layer: bool
    calls: int
    share: float


def kernels_of(model: OnnxModel, images: Array, threads: int) -> list[Kernel]:
    """Run a file a few times with its runtime's profiler and return its kernels, those that take most time first.

    Args:
        model: the file, which has been loaded and checked.
        images: what the graph takes (`OnnxModel.feed`).
        threads: within a kernel.
    """
    if isinstance(model, OpenVinoModel):
        return _openvino_kernels(model.profiled(threads), images)
    with TemporaryDirectory() as folder:
        profiled = model.again(threads=threads, profile=Path(folder) / "profile")
        for _ in range(RUNS + 1):
            profiled.run(images)
        events = json.loads(Path(profiled.end_profile()).read_bytes())
    return _kernels([event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")])


def _kernels(events: list[dict[str, Any]]) -> list[Kernel]:
    # The first run allocates memory; each run has the same calls in the same order. A call's time is the median of its runs, since
    # whatever else the machine does may stop one for longer than all others take.
    calls = len(events) // (RUNS + 1)
    durations: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for number in range(calls):
        about = events[calls + number]["args"]
        times = [event["dur"] for event in events[calls + number :: calls]]
        durations[about["op_name"], _in_integers(about)].append(median(times))
    return _sorted(durations)


def _openvino_kernels(model: OpenVinoModel, images: Array) -> list[Kernel]:
    """Return kernels from OpenVINO's profile.

    It lists all layers of the last run, also removed ones.
    """
    model.run(images)
    profiles = []
    for _ in range(RUNS):
        model.run(images)
        profiles.append(model.profile(images))
    durations: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for layer in zip(*profiles, strict=True):
        about = layer[0]
        if about.status == about.EXECUTED:
            times = [one.real_time.total_seconds() for one in layer]
            durations[about.node_type, _in_integers_of_openvino(about)].append(median(times))
    return _sorted(durations)


def _in_integers_of_openvino(about: Any) -> bool:
    """Return whether a layer computes in 8-bit integers. Its kernel's name ends in the precision; conversions between both do not count."""
    return about.exec_type.lower().endswith(OPENVINO_INTEGERS) and about.node_type != "Reorder"


def _sorted(durations: dict[tuple[str, bool], list[float]]) -> list[Kernel]:
    """Return kernels from the times of each call, by operator and arithmetic, those that take most time first."""
    total = sum(sum(times) for times in durations.values()) or 1.0
    kernels = [
        Kernel(
            operator=operator,
            integers=integers,
            layer=any(kind in operator for kind in LAYERS),
            calls=len(times),
            share=sum(times) / total,
        )
        for (operator, integers), times in durations.items()
    ]
    return sorted(kernels, key=lambda kernel: -kernel.share)


def _in_integers(about: dict[str, Any]) -> bool:
    """Return whether a call's first input and all its outputs are 8-bit integers, or its products are."""
    read = [kind for shape in about["input_type_shape"][:1] for kind in shape]
    written = [kind for shape in about["output_type_shape"] for kind in shape]
    integers = bool(read) and set(read) <= INTEGERS
    return integers and (set(written) <= INTEGERS or about["op_name"].startswith(FLOAT_OUTPUT))


def integer_layers(kernels: list[Kernel]) -> tuple[int, int]:
    """Return how many convolutions and matrix products run in integers, and of how many."""
    layers = [kernel for kernel in kernels if kernel.layer]
    return sum(kernel.calls for kernel in layers if kernel.integers), sum(kernel.calls for kernel in layers)


def integer_share(kernels: list[Kernel]) -> float:
    """Return the share of the time that is spent in integer kernels."""
    return sum(kernel.share for kernel in kernels if kernel.integers)
