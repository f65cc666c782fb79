"""Costs of each layer: its weights and its multiply-adds for one image."""

from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.capture import Call, capture
from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.taps import batchnorm_layers


@torch.no_grad()
def layer_costs(model: nn.Module, example: Tensor) -> list[dict[str, Any]]:
    """Return a row for each convolution and linear layer, in order of first execution; additions of a bias do not count.

    A row has `layer` (its name), `kind`, `weights`, `multiply_adds` (of one image, summed over the passes of a layer that runs more
    than once), and `batchnorm`: names of the BatchNorm layers that run after it and before the next row's layer.

    Args:
        model: a float network in eval mode.
        example: (1, C, H, W), any values.
    """
    order = quantizable_layers(model, example)
    modules, norms = dict(model.named_modules()), batchnorm_layers(model)
    rows: dict[str, dict[str, Any]] = {
        name: {"layer": name, "kind": type(modules[name]).__name__, "weights": 0, "multiply_adds": 0, "batchnorm": []}
        for name in order
    }
    last: list[str] = []
    seen: set[str] = set()

    def count(call: Call, output: Tensor) -> None:
        weight = modules[call.name].weight
        assert isinstance(weight, Tensor)
        # Each value of the output is a sum over the weights of its output channel.
        rows[call.name]["weights"] = weight.numel()
        rows[call.name]["multiply_adds"] += output.numel() // len(output) * weight[0].numel()
        last.append(call.name)

    def stands_after(call: Call, _: Tensor) -> None:
        if call.name not in seen:
            seen.add(call.name)
            rows[last[-1] if last else order[0]]["batchnorm"].append(call.name)

    layers = {name: modules[name] for name in order}
    with capture(layers, after=count), capture(norms, after=stands_after):
        model(example)
    return list(rows.values())
