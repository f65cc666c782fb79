"""Structure of a model for quantization: the order of its layers, and the inputs of its additions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusterq_common.capture import Call, capture
from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name

ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
QUANTIZABLE: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6)


def quantizable_layers(model: nn.Module, example: Tensor) -> list[str]:
    """Return the names of the convolutions and linear layers that run on `example` (N, C, H, W), in order of first execution.

    Raises:
        ClusterqError: there is no such layer.
    """
    order: list[str] = []
    layers = {name: module for name, module in model.named_modules() if _is_quantizable(module)}
    with evaluating(model), torch.no_grad(), capture(layers, before=lambda call: order.append(call.name)):
        model(example)
    if not order:
        raise ClusterqError(
            f"the model has no Conv2d or Linear layer that could be quantized; give {setting_name('arch')} a convolutional classifier."
        )
    return list(dict.fromkeys(order))


def float_layers(model: nn.Module) -> list[str]:
    """Return the layers with weight matrices that clusterq cannot quantize, as `name (type)`. They stay in float."""
    return [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)) and not _is_quantizable(module)
    ]


def _is_quantizable(module: nn.Module) -> bool:
    """Return whether a layer computes what its class in torch does: no subclass or method of its own changes that."""
    if not isinstance(module, QUANTIZABLE) or {"forward", "_conv_forward"} & module.__dict__.keys():
        return False
    if isinstance(module, nn.Conv2d):
        kind = type(module)
        return kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    return type(module).forward is nn.Linear.forward


@torch.no_grad()
def residual_branches(model: nn.Module, example: Tensor) -> list[str]:
    """Names of the BatchNorm and convolution layers whose output feeds an addition of two activations directly.

    Found by what flows: one forward pass on `example` (N, C, H, W), whatever branches or subclasses the model's code has.
    """
    constants = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    # Output -> its layer and the output's version: who changes it in place afterwards takes it over. Kept, so that no id is used twice.
    made: dict[int, tuple[Tensor, str, int]] = {}
    branches: list[str] = []

    class Additions(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            operands = [arg for arg in args[:2] if isinstance(arg, Tensor) and id(arg) not in constants]
            if getattr(func, "__name__", "") in ADDITIONS and len(operands) == 2:
                for operand in operands:
                    layer = made.get(id(operand))
                    if layer is not None and layer[2] == operand._version:
                        branches.append(layer[1])
            return func(*args, **(kwargs or {}))

    def note(call: Call, output: Any) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = (output, call.name, output._version)

    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d | nn.Conv2d)}
    with evaluating(model), capture(layers, after=note), Additions():
        model(example)
    return list(dict.fromkeys(branches))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode within the block."""
    training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(training)
