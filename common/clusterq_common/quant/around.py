"""Quantization around activation functions: which ones a model has, and the modules that take their place."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.flow import Key, evaluating, record_flow
from clusterq_common.quant.modules import QuantActivation

Smooth = Literal["silu", "hardswish", "sigmoid", "hardsigmoid"]
Kind = Smooth | Literal["relu"]

# torch's own functions: exporters know each as one operator, while the formulas that models have take several.
FUNCTIONS: dict[Smooth, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}
# What a function multiplies its input by.
GATES: dict[Smooth, Callable[[Tensor], Tensor]] = {"silu": torch.sigmoid, "hardswish": F.hardsigmoid}
# Operations between which and a convolution nothing else would quantize the activation.
PRODUCTS_AND_MEANS = {"mul", "mul_", "__mul__", "__imul__", "__rmul__", "mean", "avg_pool2d", "adaptive_avg_pool2d"}
# All four functions differ from each other and bend within these values.
PROBED = 8.0
TOLERANCE = 1e-5


class FoundActivation(NamedTuple):
    """An activation function of a model.

    Attributes:
        kind: what it computes.
        read: whether a product or a mean reads its output.
    """

    kind: Kind
    read: bool


class QuantSmooth(QuantActivation):
    """An activation function on a fake-quantized input.

    A SiLU is `x * q(sigmoid(x))`, so that runtimes can look the sigmoid up and multiply integers, and a hard swish likewise with a hard
    sigmoid. `output_quantizer` is None where the input of the next layer is quantized anyway.
    """

    def __init__(
        self,
        kind: Smooth,
        input_quantizer: FakeQuantizer,
        gate_quantizer: FakeQuantizer | None,
        output_quantizer: FakeQuantizer | None,
    ) -> None:
        super().__init__(nn.Identity(), output_quantizer)
        self.kind = kind
        self.input_quantizer = input_quantizer
        self.gate_quantizer = gate_quantizer

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_quantizer(x)
        y = FUNCTIONS[self.kind](x) if self.gate_quantizer is None else x * self.gate_quantizer(GATES[self.kind](x))
        return y if self.output_quantizer is None else self.output_quantizer(y)

    def extra_repr(self) -> str:
        return self.kind


@torch.no_grad()
def activations_around(model: nn.Module, example: Tensor) -> dict[str, FoundActivation]:
    """Return the activation functions of a model by module name, in order of execution.

    These are all SiLU, hard swish, sigmoid and hard sigmoid modules, whatever their classes are called, and the ReLU and ReLU6 modules
    whose output a product or a mean reads: squeeze-and-excitation, or the last pooling. A function that a forward calls itself is not a
    module, so it is not among them.

    Args:
        model: a float classifier.
        example: (N, C, H, W) float32, any values.
    """
    leaves = {name: module for name, module in model.named_modules() if _is_plain(module)}
    flow = record_flow(model, example, leaves)
    shapes: dict[str, torch.Size] = {}
    producers: dict[Key, str] = {}
    for call, _, output, returned in flow.runs:
        given = call.only_tensor
        if returned is not None and given is not None and output.shape == given.shape:
            shapes[call.name] = output.shape
            producers[returned] = call.name
    operands = [key for operation in flow.operations if operation.name in PRODUCTS_AND_MEANS for key in operation.read]
    read = {producers[key] for key in operands if key in producers}
    with evaluating(model):
        kinds = {name: _kind(leaves[name], shape, example.device) for name, shape in shapes.items()}
    return {
        name: FoundActivation(kind, name in read)
        for name, kind in kinds.items()
        if kind is not None and (kind != "relu" or name in read)
    }


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module has no parts, parameters and buffers, as functions of single values have none."""
    return not any(True for _ in module.children()) and not module.state_dict()


def _kind(module: nn.Module, shape: torch.Size, device: torch.device) -> Kind | None:
    """Return which function a module computes, judged by its values; None for another function."""
    if isinstance(module, nn.ReLU | nn.ReLU6):
        return "relu"
    values = torch.linspace(-PROBED, PROBED, max(1, shape.numel()), device=device)
    # The order is shuffled, or a softmax over a row of neighbours could not be told from a constant.
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0)).to(device)].view(shape)
    given = module(values.clone())  # some work in place
    for kind, function in FUNCTIONS.items():
        if isinstance(given, Tensor) and torch.allclose(given, function(values), rtol=0, atol=TOLERANCE):
            return kind
    return None
