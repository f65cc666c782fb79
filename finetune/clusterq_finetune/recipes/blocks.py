"""Division of a network into blocks that are reconstructed together."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusterq_common.capture import Call, capture

Parts = Literal["layer", "block"]

# pytorchcv's name for the repeated units of a stage.
UNIT = re.compile(r"unit\d+")
# Modules that belong to the layer before them, because the rest of the network sees their output.
FOLLOWING = ("torch.nn.modules.batchnorm", "torch.nn.modules.activation")


@dataclass(frozen=True)
class Block:
    """Modules that run in sequence, each on the output of the one before.

    Attributes:
        modules: names of the modules, the same in teacher and student. The block has one input and one output tensor.
        layers: names of the convolutions and linear layers in them, in order of execution.
    """

    modules: tuple[str, ...]
    layers: tuple[str, ...]

    def __str__(self) -> str:
        return self.modules[0]

    def of(self, model: nn.Module) -> nn.Sequential:
        """Return the block of this model. The modules are shared, not copied."""
        return nn.Sequential(*(model.get_submodule(name) for name in self.modules))


@dataclass
class _Trace:
    """Record of one forward pass: the calls of the modules.

    Attributes:
        calls: number of runs of each module.
        ends: input and output of each module with a single tensor of each.
        joining: classes whose own forward combines two activations.
    """

    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    ends: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    joining: set[type[nn.Module]] = field(default_factory=set)

    def whole(self, name: str) -> bool:
        """Return whether the module is a function of one tensor and ran once."""
        return self.calls[name] == 1 and name in self.ends


def find_blocks(model: nn.Module, layers: list[str], example: Tensor, parts: Parts) -> tuple[list[Block], list[str]]:
    """Split a network for reconstruction.

    A part must have one tensor as input, one as output, and run once. `block` takes the outermost modules that hold a layer and
    that either join activations in their class's forward (a residual addition, a concatenation, a gate), or are named `unit1` and
    so on as in pytorchcv. It never takes the whole network. Layers outside of these modules are handled as `layer` does. `layer`
    takes for each layer

    - the largest module that holds this layer alone,
    - and the BatchNorm and activation modules beside it that run on its output.

    So residual units of any depth are found by their computation, and networks without any are divided into layers.

    Args:
        model: the float network.
        layers: names of the layers to cover, in order of execution.
        example: (N, C, H, W) float32 with any values; one forward pass on it shows the order of calls.
        parts: `layer` or `block`.

    Returns:
        The blocks in order of execution, and the layers that no block could take (run twice, or inside modules of several tensors).
    """
    trace = _traced(model, example)
    modules = dict(model.named_modules())
    blocks: list[Block] = []
    taken: set[str] = set()
    if parts == "block":
        for name, module in modules.items():
            unit = type(module) in trace.joining or UNIT.fullmatch(name.rpartition(".")[2])
            inside = _inside(name, layers)
            if name and unit and inside and trace.whole(name) and taken.isdisjoint(inside):
                blocks.append(Block((name,), tuple(inside)))
                taken.update(inside)
    for layer in layers:
        if layer not in taken:
            name = next((name for name in _around(layer) if _inside(name, layers) == [layer] and trace.whole(name)), None)
            if name is not None:
                blocks.append(Block((name, *_following(name, modules, trace)), (layer,)))
                taken.add(layer)
    blocks.sort(key=lambda block: layers.index(block.layers[0]))
    return blocks, [layer for layer in layers if layer not in taken]


def _inside(name: str, layers: list[str]) -> list[str]:
    return [layer for layer in layers if layer == name or layer.startswith(f"{name}.")]


def _around(layer: str) -> Iterator[str]:
    """Return the names of the modules that contain a layer, the largest first, without the network itself; then the layer."""
    parts = layer.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def _following(name: str, modules: dict[str, nn.Module], trace: _Trace) -> list[str]:
    """Return the chain of BatchNorm and activation modules beside this module, each the only user of the output before it."""
    chain = [name]
    while True:
        out = trace.ends[chain[-1]][1]
        takers = [
            other
            for other, (given, _) in trace.ends.items()
            if given is out and other not in chain and not other.startswith(f"{name}.") and not any(modules[other].children())
        ]
        # After an in-place module, later ones seem to take the same tensor, but they take its result.
        if not takers or (len(takers) > 1 and trace.ends[takers[0]][1] is not out):
            return chain[1:]
        beside = takers[0].rpartition(".")[0] == name.rpartition(".")[0]
        if not beside or type(modules[takers[0]]).__module__ not in FOLLOWING or not trace.whole(takers[0]):
            return chain[1:]
        chain.append(takers[0])


@torch.no_grad()
def _traced(model: nn.Module, example: Tensor) -> _Trace:
    trace = _Trace()
    stack: list[tuple[nn.Module, bool]] = []
    modules = dict(model.named_modules())
    known = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}

    class Joins(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            given = [item for arg in args for item in (arg if isinstance(arg, tuple | list) else [arg])]
            tensors = [item for item in given if isinstance(item, Tensor) and id(item) not in known]
            # Innermost first. A module that is itself given several tensors joins them on behalf of the module around it.
            owner = next((module for module, single in reversed(stack) if single), None)
            if len(tensors) > 1 and owner is not None:
                trace.joining.add(type(owner))
            return func(*args, **(kwargs or {}))

    def entered(call: Call) -> None:
        stack.append((modules[call.name], len(call.args) == 1 and not call.kwargs and isinstance(call.args[0], Tensor)))

    def left(call: Call, output: Any) -> None:
        _, single = stack.pop()
        trace.calls[call.name] += 1
        if single and isinstance(output, Tensor):
            trace.ends[call.name] = (call.args[0], output)

    with capture(modules, before=entered, after=left), Joins():
        model(example)
    return trace
