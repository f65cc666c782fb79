"""Loading of a quantized student: its architecture is converted, then weights and ranges are loaded."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert, quantizers


def load_quantized(path: Path, model: nn.Module, config: QuantConfig, example: torch.Tensor) -> nn.Module:
    """Load the student saved at `path`, in eval mode, on `example`'s device.

    Args:
        path: a student.safetensors.
        model: the float architecture, with any weights; unchanged.
        config: settings with which it was converted.
        example: (1, C, S, S), any values.

    Raises:
        ClusterqError: the file does not fit, or has no ranges.
    """
    student = convert(model.eval(), config, example, lambda _: None)
    try:
        student.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise ClusterqError(f"--student: {path} does not fit the config.yaml beside it ({error}); fine-tune again.") from error
    missing = [name for name, quantizer in quantizers(student).items() if not quantizer.calibrated]
    if missing:
        raise ClusterqError(f"--student: {path} has no range for {missing[0]}, expected a calibrated student; fine-tune again.")
    return student.eval()
