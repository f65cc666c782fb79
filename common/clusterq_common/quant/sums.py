"""Residual additions and max poolings of a model: which modules' outputs to quantize, so that both can run in integers."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clusterq_common.quant.flow import ADDITIONS, Key, Operation, record_flow

RECTIFIERS = {"relu", "relu_", "relu6", "hardtanh", "hardtanh_"}


class Sums(NamedTuple):
    """Places around the residual additions and max poolings of a model.

    Attributes:
        outputs: modules that return the result of an addition, or what an addition or a max pooling reads; in order of execution.
        inputs: by layer, the modules whose output is its input, or the input of the max pooling before it; the innermost first.
        left: modules in whose forward such a value is computed that no module returns, one entry a value.
    """

    outputs: list[str]
    inputs: dict[str, list[str]]
    left: list[str]


def sums_and_poolings(model: nn.Module, layers: Iterable[str], example: Tensor) -> Sums:
    """Find the values that residual additions and max poolings read, and what the additions give.

    Found by what flows in one forward pass. Where only a ReLU reads a sum, its output stands for the sum. A value is found at the
    innermost module that returns it and runs once, since a module that runs twice returns two.

    Args:
        model: a float classifier.
        layers: names of convolutions and linear layers.
        example: (N, C, H, W) float32, any values.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    flow = record_flow(model, example, modules)
    uses = _Uses(flow.operations)
    runs = Counter(run.call.name for run in flow.runs)
    producers: dict[Key, list[str]] = {}
    inputs: dict[str, set[Key]] = {name: set() for name in layers}
    for run in flow.runs:
        if run.returned is not None:
            producers.setdefault(run.returned, []).append(run.call.name)
        if run.call.name in inputs and run.taken is not None:
            inputs[run.call.name].add(run.taken)
    outputs, left = [], []
    for key, where in uses.wanted().items():
        holders = [name for name in producers.get(key, []) if runs[name] == 1 and _can_hold(modules[name])]
        if holders:
            outputs.append(holders[0])
        else:
            left.append(where)
    given = {name: producers.get(uses.before_pooling(keys.pop()), []) for name, keys in inputs.items() if len(keys) == 1}
    return Sums(list(dict.fromkeys(outputs)), given, left)


class _Uses:
    """Additions, rectifiers and max poolings among the operations of a forward pass."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._reads: Counter[Key] = Counter()
        self._sums: set[Key] = set()
        self._rectified: dict[Key, Key] = {}
        self._pooled: dict[Key, Key] = {}
        # In the order of use; the values name the module in whose forward it happened.
        self._used: dict[Key, str] = {}
        for operation in operations:
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        name, read, result, within = operation
        if result is None:
            return
        where = within[-1].name if within else ""
        self._reads.update(read)
        if name in ADDITIONS and len(read) == 2:
            self._sums.add(result)
            for key in (*read, result):
                self._used.setdefault(key, where)
        elif name == "max_pool2d":
            self._used.setdefault(read[0], where)
            self._pooled[result] = read[0]
        elif name in RECTIFIERS:
            self._rectified[read[0]] = result

    def before_pooling(self, key: Key) -> Key:
        """Return what max poolings made a tensor from; the tensor itself where none did."""
        while key in self._pooled:
            key = self._pooled[key]
        return key

    def wanted(self) -> dict[Key, str]:
        """Return the tensors to quantize, each with the module in whose forward it was summed or read first."""
        wanted: dict[Key, str] = {}
        for key, where in self._used.items():
            only_rectified = key in self._sums and self._reads[key] == 1
            wanted.setdefault(self.before_pooling(self._rectified.get(key, key) if only_rectified else key), where)
        return wanted


def _can_hold(module: nn.Module) -> bool:
    """Return whether a quantizer can be registered in a module and applied behind its forward.

    A container would run it as one of its own layers, and a forward of the object's own would pass it by.
    """
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, torch.jit.ScriptModule)
    return not isinstance(module, containers) and "forward" not in module.__dict__
