"""Structure of a model for quantization: the order of its layers, and the inputs of its additions."""

import operator

import torch
from torch import Tensor, fx, nn

from clusterq_common.errors import ClusterqError

QUANTIZABLE: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6)


def quantizable_layers(model: nn.Module, example: Tensor) -> list[str]:
    """Return the names of the convolutions and linear layers that run on `example` (N, C, H, W), in order of first execution.

    Raises:
        ClusterqError: there is no such layer.
    """
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: order.append(name))
        for name, module in model.named_modules()
        if type(module).forward in {kind.forward for kind in QUANTIZABLE} and isinstance(module, QUANTIZABLE)
    ]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if not order:
        raise ClusterqError(
            "the model has no Conv2d or Linear layer that could be quantized; give --arch a convolutional classifier."
        )
    return list(dict.fromkeys(order))


def float_layers(model: nn.Module) -> list[str]:
    """Return the layers with weight matrices that clusterq cannot quantize, as `name (type)`. They stay in float."""
    return [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
        and not (isinstance(module, QUANTIZABLE) and type(module).forward in {kind.forward for kind in QUANTIZABLE})
    ]


def residual_branches(model: nn.Module) -> list[str]:
    """Return the names of the BatchNorm and convolution layers whose output feeds an addition directly.

    Raises:
        ClusterqError: the model's forward cannot be traced by torch.fx.
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # torch.fx documents no narrower type
        raise ClusterqError(
            f"branch outputs: torch.fx cannot trace this model ({type(error).__name__}: {error}); leave branch_outputs off."
        ) from error
    modules = dict(model.named_modules())
    additions = {operator.add, operator.iadd, torch.add, "add", "add_"}
    return [
        str(source.target)
        for node in graph.nodes
        if node.op in {"call_function", "call_method"} and node.target in additions
        for source in node.args
        if isinstance(source, fx.Node) and source.op == "call_module"
        if isinstance(modules[str(source.target)], nn.BatchNorm2d | nn.Conv2d)
    ]
