"""Loading of a quantized student: its architecture is converted, then weights and ranges are loaded."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert, quantizers, settle_scales
from clusterq_common.taps import negative_variance


def load_quantized(path: Path, model: nn.Module, config: QuantConfig, example: torch.Tensor) -> nn.Module:
    """Load the student saved at `path`, in eval mode, on `example`'s device.

    Args:
        path: a student.safetensors.
        model: the float architecture, with any weights; unchanged.
        config: settings with which it was converted.
        example: (1, C, H, W), any values.

    Raises:
        ClusterqError: the file does not fit, or has no ranges.
    """
    student = convert(model.eval(), config, example, lambda _: None)
    try:
        student.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise ClusterqError(
            f"{path} does not fit the config.yaml beside it ({error}); fine-tune again.", setting="student"
        ) from error
    missing = [name for name, quantizer in quantizers(student).items() if not quantizer.calibrated]
    if missing:
        raise ClusterqError(
            f"{path} has no range for {missing[0]}, expected a calibrated student; fine-tune again.", setting="student"
        )
    _refuse_odd_values(student, path)
    settle_scales(student, lambda _: None)  # those of older versions
    return student.eval()


def _refuse_odd_values(student: nn.Module, path: Path) -> None:
    """Refuse a student with negative variances, non-finite values, or limits outside its grids."""
    for name, quantizer in quantizers(student).items():
        scale, zero, grid = quantizer.scale, quantizer.zero_point, quantizer.grid
        if not bool(torch.isfinite(scale).all()):
            raise ClusterqError(f"{path} has a scale that is not finite in {name}; fine-tune again.", setting="student")
        if quantizer.limits.tolist() != [grid.low, grid.high] or bool(((zero < grid.low) | (zero > grid.high)).any()):
            raise ClusterqError(
                f"{path} has integers in {name} that its {grid.bits} bits do not hold, expected {grid.low} to {grid.high}; "
                "fine-tune again.",
                setting="student",
            )
    for name, value in student.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ClusterqError(f"{path} holds values that are not finite, in {name}; fine-tune again.", setting="student")
    if (negative := negative_variance(student)) is not None:
        name, value = negative
        raise ClusterqError(
            f"{path} has a running variance of {value:g} in {name}, expected none below 0; fine-tune again.", setting="student"
        )
