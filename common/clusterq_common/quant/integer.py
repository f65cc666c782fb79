"""A student computed as integer hardware would: integers in, an exact accumulator, one multiplication by scales at the end."""

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
    """Within this, the student's convolutions and linear layers multiply and add integers.

    `y = (sum of (x - z_x) * (w - z_w)) * s_x * s_w[channel] + bias`, float32, with the integers, zero-points z and scales s of
    `FakeQuantizer.to_int()`: there is no other rounding. The sum is exact. A side without a quantizer (the input behind
    `--activation-sites relu`, weights at 32 bits) enters in float. All other modules, quantizers of outputs among them, run as
    ever. For inference: no gradient passes. The plain forward is back afterwards, whatever happens.

    Raises:
        RuntimeError: within, from a quantizer that has no range yet.
    """
    # Layers that compute in integers already belong to a context around this one.
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
    # cuDNN may convolve through FFT or Winograd, which do not add integers. Autocast would take the accumulator's bits away.
    with torch.backends.cudnn.flags(enabled=False), torch.autocast(x.device.type, enabled=False):
        total = accumulate(x_integers.to(dtype), w_integers.to(dtype), None)
    y = total.double() * (x_scale * w_scale).view(channels)
    if layer.bias is not None:
        y = y + layer.bias.double().view(channels)
    y = y.float()
    return y if layer.output_quantizer is None else layer.output_quantizer(y)


def _integers(quantizer: FakeQuantizer | None, values: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (int32) less their zero-point, and their scale (float64), (1,) or (channels,); values and 1 without a quantizer."""
    if quantizer is None:
        return values, torch.ones(1, dtype=torch.float64, device=values.device)
    integers, scale, zero_point, axis = quantizer.to_int(values)
    shape = [1 if axis is None else -1] + [1] * (values.dim() - 1)
    return integers - zero_point.view(shape), scale.double()


def _accumulator(x: Tensor, w: Tensor) -> torch.dtype:
    """A type in which adding up `w[0].numel()` products rounds nowhere: the order of the additions is then of no account.

    float64 holds integers below 2^53 exactly, more than any layer of 8-bit integers can reach (2^37 products of 2^16). float32
    holds those below 2^24, which is enough for most layers of 4 bits, and several times as fast.
    """
    if x.is_floating_point() or w.is_floating_point() or not x.numel():
        return torch.float64
    largest = int(x.abs().max()) * int(w.abs().max()) * w[0].numel()
    return torch.float32 if largest < 2**24 else torch.float64
