"""Learning rates that CUDA graphs can read. A number would be recorded with the step; a tensor is read at each replay."""

from typing import Any

import torch
from torch import Tensor


def held_rate(rate: float, device: torch.device, *, graphs: bool) -> float | Tensor:
    """Return a learning rate for an optimizer.

    With `graphs` it is a tensor () on the device: float32 on a GPU, whose fused kernels read that type, else float64.
    """
    if not graphs:
        return rate
    return torch.tensor(rate, dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the next step, for all parameters."""
    for group in optimizer.param_groups:
        set_group_rate(group, rate)


def set_group_rate(group: dict[str, Any], rate: float) -> None:
    """Set the rate of the next step, for one group of parameters."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
