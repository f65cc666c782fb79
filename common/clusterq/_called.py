"""Helpers of the Python functions."""

from collections.abc import Callable

import torch
from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.quant.convert import quantizers

Log = Callable[[str], None]


def device_of(model: nn.Module) -> torch.device:
    """The device of a network: that of its first parameter, the CPU where it has none."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def need_calibrated(student: nn.Module) -> None:
    """Refuse a student that cannot be run yet.

    Raises:
        ClusterqError: a quantizer of it has no range.
    """
    missing = next((name for name, quantizer in quantizers(student).items() if not quantizer.calibrated), None)
    if missing is not None:
        raise ClusterqError(f"student: {missing} has no range yet, expected a calibrated student; call calibrate first.")
