"""Time, memory and arithmetic of a step, on a GPU or, in a rehearsal, on a CPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# Steps that make optimizers' state, choose kernels and, with graphs, record.
WARM_STEPS = 6
STEPS_TOGETHER = 10
MOST_GROUPS = 7
# Operators whose kernels are convolutions and matrix products.
PRODUCTS = ("convolution", "conv_", "addmm", "aten::mm", "bmm", "_conv", "mkldnn")
SIDE = 8192
KERNELS_IN_LOG = 25


@dataclass(frozen=True)
class StepTime:
    """What a step costs.

    Attributes:
        milliseconds: median over groups of steps.
        spread: the slowest group's time over the fastest one's.
        peak_mb: the most memory allocated on the GPU at any moment; 0 on a CPU.
    """

    milliseconds: float
    spread: float
    peak_mb: float


def time_step(step: Callable[[], object], device: torch.device, *, seconds: float, together: int = STEPS_TOGETHER) -> StepTime:
    """Time a step in groups, each waited for at its end, for about so many seconds; the first steps do not count."""
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
    """Until everything queued on a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operations(step: Callable[[], object]) -> float:
    """Floating-point operations of one step in convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


@dataclass(frozen=True)
class DeviceTime:
    """Where a device's time in a step goes.

    Attributes:
        shares: share of the device's time by operator, largest first: what its own kernels take, those of operators inside left out.
        milliseconds: of kernels alone in a step; what a step takes beyond it, the device waits for Python.
        kernels: how many are launched in a step.
    """

    shares: dict[str, float]
    milliseconds: float
    kernels: int

    @property
    def products(self) -> float:
        """Share of the time in convolutions and matrix products."""
        return sum(share for name, share in self.shares.items() if any(word in name for word in PRODUCTS))


def device_time(step: Callable[[], object], device: torch.device, *, steps: int = 3) -> DeviceTime:
    """Profile a step; the longest kernels go to the log."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])) as found:
        for _ in range(steps):
            step()
        wait(device)
    own: dict[str, float] = {}
    kernels: dict[str, tuple[float, int]] = {}
    for event in found.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        # Kernels have rows of their own beside the operators that launched them.
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
    """Operations a second of a large square matrix product on random values: what the device can do at most."""
    side = SIDE if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = time_step(lambda: a @ b, device, seconds=1.0)
    return 2 * side**3 / (best.milliseconds / 1e3)


def memory_ceiling(device: torch.device) -> float:
    """Bytes a second of a large copy on the device, those read and those written counted."""
    size = (1 << 30) if device.type == "cuda" else (1 << 24)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / (time_step(lambda: target.copy_(source), device, seconds=0.5).milliseconds / 1e3)
