"""A device that a host cannot wait for: torch's meta device, which has shapes and no values, in the place of a GPU.

What would stop the host on a GPU (a value looked at, a number of results that depends on values, a copy from pageable memory) fails here,
and so does a tensor that was left on the host.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ELSEWHERE = torch.device("meta")


@contextmanager
def nothing_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside the block each copy between host and device must be one that the host does not wait for."""
    _fake_kernels()
    autocast = torch.autocast

    # A base class taken from a variable, and untyped: torch.autocast is what is replaced.
    class HostAutocast(autocast):
        """There is no autocast for the meta device."""

        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "meta" else device_type, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "autocast", HostAutocast)
        # Nothing can be pinned where there is no accelerator.
        patch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        with _Copies():
            yield


def move(module: nn.Module) -> None:
    """All parameters and buffers there."""
    module.to(ELSEWHERE)


class _Copies(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, Tensor) and value.dim()]
        if len({tensor.device.type for tensor in tensors}) > 1:
            assert func is torch.ops.aten._to_copy.default, f"{func} is given tensors of two devices"
            assert (kwargs or {}).get("non_blocking"), f"the host waits for a copy of {tuple(result.shape)}"
        return result


@cache
def _fake_kernels() -> None:
    """torch has no shapes-only version of its own fake-quantization."""
    # That for channels is missing on purpose: on a GPU it looks at the zero-points.
    name = "aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams"
    torch.library.register_fake(name)(lambda x, *_: (torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)))
