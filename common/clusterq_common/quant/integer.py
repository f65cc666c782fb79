"""Integer arithmetic of a student, as on hardware: integer inputs, an exact accumulator, and one multiplication by scales."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.modules import QuantConv2d, QuantLinear

Layer = QuantConv2d | QuantLinear


@contextmanager
def integer_arithmetic(student: nn.Module) -> Iterator[None]:
    """Run the student's convolutions and linear layers in integer arithmetic within the block.

    They compute `y = (sum of (x - z_x) * (w - z_w)) * s_x * s_w[channel] + bias`, float32, with the integers, zero-points z and
    scales s of `FakeQuantizer.to_int()`. There is no other rounding, and the sum is exact. An operand without a quantizer (the
    input with `activation_sites="relu"`, weights at 32 bits) stays in float. All other modules, including quantizers of outputs,
    run as usual. It is for inference: there is no gradient. The plain forward is restored afterwards, also after an error.

    Raises:
        RuntimeError: raised within the block by a quantizer that has no range yet.
    """
    # Layers already in integer arithmetic belong to an outer context.
    layers = [layer for layer in student.modules() if isinstance(layer, Layer) and "forward" not in layer.__dict__]
    try:
        for layer in layers:
            if layer.input_quantizer is not None or layer.weight_quantizer is not None:
                layer.__dict__["forward"] = partial(_forward, layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


@torch.no_grad()
def _forward(layer: Layer, x: Tensor) -> Tensor:
    x_integers, x_scale = _integers(layer.input_quantizer, x)
    w_integers, w_scale = _integers(layer.weight_quantizer, layer.weight)
    if isinstance(layer, QuantConv2d):
        accumulate: Callable[[Tensor, Tensor, None], Tensor] = layer._conv_forward
        channels = [-1, 1, 1]
    else:
        accumulate, channels = F.linear, [-1]
    dtype = _accumulator(x_integers, w_integers)
    # cuDNN may use FFT or Winograd, which do not add integers exactly. Autocast would reduce the accumulator's precision.
    with torch.backends.cudnn.flags(enabled=False), torch.autocast(x.device.type, enabled=False):
        total = accumulate(x_integers.to(dtype), w_integers.to(dtype), None)
    y = total.double() * (x_scale * w_scale).view(channels)
    if layer.bias is not None:
        y = y + layer.bias.double().view(channels)
    y = y.float()
    return y if layer.output_quantizer is None else layer.output_quantizer(y)


def _integers(quantizer: FakeQuantizer | None, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers (int32) minus their zero-point and their scale (float64), (1,) or (channels,); else `values` and 1."""
    if quantizer is None:
        return values, torch.ones(1, dtype=torch.float64, device=values.device)
    integers, scale, zero_point, axis = quantizer.to_int(values)
    shape = [1 if axis is None else -1] + [1] * (values.dim() - 1)
    return integers - zero_point.view(shape), scale.double()


def _accumulator(x: Tensor, w: Tensor) -> torch.dtype:
    """Return a type in which adding `w[0].numel()` products is exact, so that the order of the additions does not matter.

    float64 represents integers below 2^53 exactly, more than any layer of 8-bit integers can reach (2^37 products of 2^16).
    float32 represents those below 2^24, which is enough for most layers of 4 bits, and is several times as fast.
    """
    if x.is_floating_point() or w.is_floating_point() or not x.numel():
        return torch.float64
    largest = int(x.abs().max()) * int(w.abs().max()) * w[0].numel()
    return torch.float32 if largest < 2**24 else torch.float64
