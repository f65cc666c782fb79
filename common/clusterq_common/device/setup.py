"""Device, threads and mixed precision, chosen once from the settings."""

import os

import torch
from torch import Tensor, nn

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name


def prepare_device(config: RuntimeConfig) -> torch.device:
    """Set the number of CPU threads and return the device.

    Raises:
        ClusterqError: CUDA is requested and there is none.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ClusterqError(
            f"{setting_name('device', 'cuda')}: torch {torch.__version__} sees no CUDA device, expected one; use {setting_name('device', 'cpu')}, or install a CUDA "
            "build of torch."
        )
    if not available or config.device == "cpu":
        return torch.device("cpu")
    prepare_cuda(deterministic=config.deterministic)
    # Under torchrun each process has a GPU of its own.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def prepare_cuda(*, deterministic: bool) -> None:
    """Apply settings for the whole process, before anything runs on a GPU."""
    # Speed comes from bf16 autocast. TF32 would round values that fake-quantizers have put on a grid.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # warn_only: a warning names an operation without a deterministic kernel, instead of ending the run.
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Otherwise every new tensor is filled first, to guard against reads of uninitialised memory: a tenth of a step on an H200.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # missing from torch's annotations


# The attribute of networks that fail in channels_last order.
CONTIGUOUS = "clusterq_contiguous"


def to_device(module: nn.Module, device: torch.device | str) -> None:
    """Move a network to a device, with convolution weights in channels_last order (about twice as fast, on CPU too).

    Networks for which that order fails stay contiguous (see `teacher.adapt`).
    """
    module.to(device)
    if getattr(module, CONTIGUOUS, False):
        return
    set_memory_format(module, torch.channels_last)


def set_memory_format(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Store a network's four-dimensional parameters and buffers in an order of memory, in place."""
    module.to(memory_format=memory_format)  # type: ignore[call-overload]  # missing from torch's own annotations


def to_device_async(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy host values to a device asynchronously. From pageable memory the host would wait for all work queued there.

    Args:
        values: values on the host; they must not change until the copy is complete.
        device: target device.
        dtype: type of the result, converted on the host; unchanged when None.
    """
    values = values if dtype is None else values.to(dtype)
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def training_autocast(config: RuntimeConfig, device: torch.device, *, images: bool = False) -> torch.autocast:
    """Return the autocast context for forward passes in training. Quantizers and statistics switch to float32 by themselves.

    Args:
        config: `auto` is bf16 on GPUs that have it.
        device: device of the networks.
        images: whether images or a generator of them are trained. `auto` is then bf16 also on CPUs with instructions for it. There
            it takes 0.6 of the time, and one student from such images was as good as others (docs/history.md). A student's own grid
            is finer than bf16.
    """
    has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else images and _cpu_computes_bf16()
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=config.amp == "bf16" or (config.amp == "auto" and has_bf16)
    )


def _cpu_computes_bf16() -> bool:
    # Without such instructions bf16 is emulated, and slower than float32. torch has no public function for this check.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to float32, unless `x` is wider already: for statistics and losses, where bf16 is too coarse."""
    return x if x.dtype == torch.float64 else x.float()
