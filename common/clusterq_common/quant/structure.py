"""Structure of a model for quantization: the order of its layers, and the inputs of its additions."""

import torch
from torch import Tensor, nn

from clusterq_common.capture import capture
from clusterq_common.errors import ClusterqError
from clusterq_common.quant.flow import ADDITIONS, evaluating, record_flow
from clusterq_common.setting_names import setting_name

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


def residual_branches(model: nn.Module, example: Tensor) -> list[str]:
    """Names of the BatchNorm and convolution layers whose output feeds an addition of two activations directly.

    Found in one forward pass on `example` (N, C, H, W), whatever branches or subclasses the model's code has.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d | nn.Conv2d)}
    flow = record_flow(model, example, layers)
    # A layer may return the tensor of a layer within it: the last one to return it counts.
    producers = {run.returned: run.call.name for run in flow.runs if run.returned is not None}
    added = [
        key
        for operation in flow.operations
        if operation.name in ADDITIONS and len(operation.read) == 2
        for key in operation.read
    ]
    return list(dict.fromkeys(producers[key] for key in added if key in producers))
