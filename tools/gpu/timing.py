"""Measurement of a step's time, memory and arithmetic, on a GPU or, in a rehearsal, on a CPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# Number of first steps, which create optimizers' state, choose kernels and, with graphs, record.
WARM_STEPS = 6
STEPS_TOGETHER = 10
MOST_GROUPS = 7
# Operators whose kernels are convolutions and matrix products.
PRODUCTS = ("convolution", "conv_", "addmm", "aten::mm", "bmm", "_conv", "mkldnn")
SIDE = 8192
KERNELS_IN_LOG = 25


@dataclass(frozen=True)
class StepTime:
    """Time and memory of a step.

    Attributes:
        milliseconds: median over groups of steps.
        spread: the slowest group's time over the fastest one's.
        peak_mb: peak memory allocated on the GPU; 0 on a CPU.
    """

    milliseconds: float
    spread: float
    peak_mb: float


def time_step(step: Callable[[], object], device: torch.device, *, seconds: float, together: int = STEPS_TOGETHER) -> StepTime:
    """Time a step in groups with a synchronisation after each, for about this number of seconds. The first steps do not count."""
    cuda = device.type == "cuda"
    for _ in range(WARM_STEPS if cuda else 1):
        step()
    wait(device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    groups: list[float] = []
    end = time.monotonic() + seconds
    while len(groups) < 2 or (time.monotonic() < end and len(groups) < MOST_GROUPS):
        begin = time.perf_counter()
        for _ in range(together):
            step()
        wait(device)
        groups.append(1e3 * (time.perf_counter() - begin) / together)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else 0.0
    return StepTime(median(groups), max(groups) / min(groups), peak)


def wait(device: torch.device) -> None:
    """Wait until everything queued on a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operations(step: Callable[[], object]) -> float:
    """Return the floating-point operations of one step in convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


@dataclass(frozen=True)
class DeviceTime:
    """Distribution of a device's time in a step.

    Attributes:
        shares: share of the device's time by operator, largest first: its own kernels without those of nested operators.
        milliseconds: time of kernels alone in a step; during the rest of a step the device waits for Python.
        kernels: number of kernels launched in a step.
    """

    shares: dict[str, float]
    milliseconds: float
    kernels: int

    @property
    def products(self) -> float:
        """Share of the time in convolutions and matrix products."""
        return sum(share for name, share in self.shares.items() if any(word in name for word in PRODUCTS))


def device_time(step: Callable[[], object], device: torch.device, *, steps: int = 3) -> DeviceTime:
    """Profile a step. The longest kernels are printed to the log."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])) as found:
        for _ in range(steps):
            step()
        wait(device)
    own: dict[str, float] = {}
    kernels: dict[str, tuple[float, int]] = {}
    for event in found.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        # Kernels have separate rows in addition to the operators that launch them.
        if spent > 0 and event.key.startswith(("aten::", "clusterq", "autograd::")):
            own[event.key] = own.get(event.key, 0.0) + spent
        elif cuda and spent > 0 and event.self_cpu_time_total == 0:
            kernels[event.key] = spent, event.count
    for name, (spent, count) in sorted(kernels.items(), key=lambda item: -item[1][0])[:KERNELS_IN_LOG]:
        print(f"    {spent / steps / 1e3:9.3f} ms {count / steps:7.1f} x {name[:150]}", flush=True)
    whole = sum(own.values()) or 1.0
    shares = {name: spent / whole for name, spent in sorted(own.items(), key=lambda item: -item[1])}
    taken, count = sum(spent for spent, _ in kernels.values()), sum(count for _, count in kernels.values())
    return DeviceTime(shares, taken / steps / 1e3, count // steps)


def product_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a large square matrix product on random values: a ceiling of the device."""
    side = SIDE if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = time_step(lambda: a @ b, device, seconds=1.0)
    return 2 * side**3 / (best.milliseconds / 1e3)


def memory_ceiling(device: torch.device) -> float:
    """Return the bytes a second of a large copy on the device, counting reads and writes."""
    size = (1 << 30) if device.type == "cuda" else (1 << 24)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / (time_step(lambda: target.copy_(source), device, seconds=0.5).milliseconds / 1e3)
