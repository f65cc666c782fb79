"""Layers of a quantized student. Each keeps the name, parameters and state-dict keys of the layer that it replaces."""

from abc import abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from clusterq_common.quant.fake_quantize import computed_again
from clusterq_common.quant.fake_quantizer import FakeQuantizer


class _Quantized(nn.Module):
    """A layer on fake-quantized weights and input. A quantizer that is None leaves its tensor as it is.

    Stands before the layer's own class.

    Attributes:
        reads: the quantizer that the input comes from, by its name in the student, where that is not the layer's own; else empty.
    """

    reads: str = ""

    weight: Tensor
    weight_quantizer: FakeQuantizer | None
    input_quantizer: FakeQuantizer | None
    output_quantizer: FakeQuantizer | None

    def forward(self, x: Tensor) -> Tensor:
        x, weight = _quantized(self.input_quantizer, x), _quantized(self.weight_quantizer, self.weight)
        with computed_again(x):
            result = self.product(x, weight)
        return _quantized(self.output_quantizer, result)

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the layer's output for a quantized input and weight."""


class QuantConv2d(_Quantized, nn.Conv2d):
    """A convolution on fake-quantized weights and input."""

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


class QuantLinear(_Quantized, nn.Linear):
    """A linear layer on fake-quantized weights and input."""

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


class _QuantOutput(nn.Module):
    """A module whose output, as a residual addition reads or returns it, is fake-quantized. Stands before the module's own class."""

    output_quantizer: FakeQuantizer | None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = super().forward(*args, **kwargs)
        return _quantized(self.output_quantizer, result)


# A class of layers -> the class of those whose output is quantized.
_QUANTIZED_OUTPUT: dict[type[nn.Module], type[nn.Module]] = {}


def quantized_output(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of layers of this kind, subclasses with a forward of their own included, whose output is fake-quantized."""
    if kind not in _QUANTIZED_OUTPUT:
        _QUANTIZED_OUTPUT[kind] = type(f"QuantOutput{kind.__name__}", (_QuantOutput, kind), {"__module__": __name__})
    return _QUANTIZED_OUTPUT[kind]


class QuantActivation(nn.Module):
    """An activation function followed by a fake-quantizer on its output."""

    output_quantizer: FakeQuantizer | None

    def __init__(self, activation: nn.Module, output_quantizer: FakeQuantizer | None) -> None:
        super().__init__()
        self.activation = activation
        self.output_quantizer = output_quantizer

    def forward(self, x: Tensor) -> Tensor:
        # The quantizer may read its input again for the gradient. An in-place ReLU is safe, because it runs before.
        return _quantized(self.output_quantizer, self.activation(x))


def _quantized(quantizer: FakeQuantizer | None, x: Tensor) -> Tensor:
    return x if quantizer is None else quantizer(x)


def from_float(layer: nn.Module, kind: type[nn.Module], **quantizers: FakeQuantizer | None) -> nn.Module:
    """Return a `kind` module with the given quantizers and the parameters, buffers and settings of `layer`, not copied."""
    quantized = kind.__new__(kind)
    quantized.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in layer.__dict__.items()}
    for name, quantizer in quantizers.items():
        quantized.register_module(name, quantizer)
    return quantized
