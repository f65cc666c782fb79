"""Residual additions and max poolings of a model: which modules' outputs to quantize, so that both can run in integers."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusterq_common.capture import Call, capture
from clusterq_common.quant.structure import ADDITIONS, evaluating

RECTIFIERS = {"relu", "relu_", "relu6", "hardtanh", "hardtanh_"}
# A tensor as it is now: who changes it in place makes another one.
Key = tuple[int, int]


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


@torch.no_grad()
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
    flow = _Flow(tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors)
    inputs: dict[str, set[Key]] = {name: set() for name in layers}

    def enter(call: Call) -> None:
        flow.running.append(call.name)
        if call.name in inputs and call.args and isinstance(call.args[0], Tensor):
            inputs[call.name].add(flow.key(call.args[0]))

    def leave(call: Call, output: Any) -> None:
        flow.running.pop()
        flow.runs[call.name] += 1
        if isinstance(output, Tensor):
            flow.givers.setdefault(flow.key(output), []).append(call.name)

    with evaluating(model), capture(modules, before=enter, after=leave), flow:
        model(example)
    outputs, left = [], []
    for key, where in flow.wanted():
        holders = [name for name in flow.givers.get(key, []) if flow.runs[name] == 1 and _can_hold(modules[name])]
        if holders:
            outputs.append(holders[0])
        else:
            left.append(where)
    given = {name: flow.givers.get(flow.before_pooling(keys.pop()), []) for name, keys in inputs.items() if len(keys) == 1}
    return Sums(list(dict.fromkeys(outputs)), given, left)


class _Flow(TorchFunctionMode):
    """Recorder of what modules and functions do to the tensors of one forward pass.

    Attributes:
        running: modules whose forward has begun and not ended.
        runs: number of runs of each module.
        givers: by tensor, the modules that returned it.
    """

    def __init__(self, constants: Iterable[Tensor]) -> None:
        super().__init__()
        self.running: list[str] = []
        self.runs: Counter[str] = Counter()
        self.givers: dict[Key, list[str]] = {}
        self._constants = {id(tensor) for tensor in constants}
        self._kept: list[Tensor] = []  # so that no id is used twice
        self._reads: Counter[Key] = Counter()
        self._sums: set[Key] = set()
        self._rectified: dict[Key, Key] = {}
        self._pooled: dict[Key, Key] = {}
        # In the order of use; the values name the module in whose forward it happened.
        self._used: dict[Key, str] = {}

    def key(self, tensor: Tensor) -> Key:
        """Return what tells this state of a tensor from all others of the pass."""
        self._kept.append(tensor)
        return id(tensor), tensor._version

    def before_pooling(self, key: Key) -> Key:
        """Return what max poolings made a tensor from; the tensor itself where none did."""
        while key in self._pooled:
            key = self._pooled[key]
        return key

    def wanted(self) -> list[tuple[Key, str]]:
        """Return the tensors to quantize, each once, with the module in whose forward it was summed or read."""
        found: dict[Key, str] = {}
        for key, where in self._used.items():
            only_rectified = key in self._sums and self._reads[key] == 1
            found.setdefault(self.before_pooling(self._rectified.get(key, key) if only_rectified else key), where)
        return list(found.items())

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        read = [self.key(tensor) for tensor in _tensors([*args, *(kwargs or {}).values()]) if id(tensor) not in self._constants]
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or not read:
            return result
        self._reads.update(read)
        name, made = getattr(func, "__name__", ""), self.key(result)
        where = self.running[-1] if self.running else ""
        if name in ADDITIONS and len(read) == 2:
            self._sums.add(made)
            for key in (*read, made):
                self._used.setdefault(key, where)
        elif name == "max_pool2d":
            self._used.setdefault(read[0], where)
            self._pooled[made] = read[0]
        elif name in RECTIFIERS:
            self._rectified[read[0]] = made
        return result


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among arguments, those in lists included (concatenation)."""
    found = []
    for value in values:
        found += _tensors(value) if isinstance(value, list | tuple) else [value] if isinstance(value, Tensor) else []
    return found


def _can_hold(module: nn.Module) -> bool:
    """Return whether a quantizer can be registered in a module and applied behind its forward.

    A container would run it as one of its own layers, and a forward of the object's own would pass it by.
    """
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict, torch.jit.ScriptModule)
    return not isinstance(module, containers) and "forward" not in module.__dict__
