"""Division of a network into blocks that are reconstructed together."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from clusterq_common.quant.flow import Operation, record_flow

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


class _Modules:
    """Modules of a network as one forward pass shows them.

    Attributes:
        by_name: all modules.
        joining: classes whose own forward combines two activations.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.by_name = dict(model.named_modules())
        flow = record_flow(model, example, self.by_name)
        self.joining = {type(self.by_name[name]) for name in _joining(flow.operations)}
        self._functions = [run for run in flow.runs if run.call.only_tensor is not None and run.returned is not None]
        counts = Counter(run.call.name for run in flow.runs)
        self._whole = {run.call.name: run for run in self._functions if counts[run.call.name] == 1}

    def whole(self, name: str) -> bool:
        """Return whether the module is a function of one tensor and ran once."""
        return name in self._whole

    def following(self, name: str) -> list[str]:
        """Return the chain of BatchNorm and activation modules beside a whole one, each the only user of the output before it."""
        chain = [name]
        while True:
            out = self._whole[chain[-1]].returned
            takers = [run for run in self._functions if run.taken == out and self._outside(run.call.name, chain)]
            # Where several take it, the first one must hand the tensor on as it is.
            if not takers or (len(takers) > 1 and takers[0].returned != out):
                return chain[1:]
            taker = takers[0].call.name
            beside = taker.rpartition(".")[0] == name.rpartition(".")[0]
            if not beside or type(self.by_name[taker]).__module__ not in FOLLOWING or not self.whole(taker):
                return chain[1:]
            chain.append(taker)

    def _outside(self, name: str, chain: list[str]) -> bool:
        """Return whether a module has no parts, and is neither in a chain nor within its first module."""
        return name not in chain and not name.startswith(f"{chain[0]}.") and not any(self.by_name[name].children())


def _joining(operations: Iterable[Operation]) -> Iterator[str]:
    """Return the modules in which operations read several tensors.

    A module that is itself given several tensors joins them on behalf of the module around it.
    """
    for operation in operations:
        owner = next((call.name for call in reversed(operation.within) if call.only_tensor is not None), None)
        if len(operation.read) > 1 and owner is not None:
            yield owner


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
    modules = _Modules(model, example)
    blocks: list[Block] = []
    taken: set[str] = set()
    if parts == "block":
        for name, module in modules.by_name.items():
            unit = type(module) in modules.joining or UNIT.fullmatch(name.rpartition(".")[2])
            inside = _inside(name, layers)
            if name and unit and inside and modules.whole(name) and taken.isdisjoint(inside):
                blocks.append(Block((name,), tuple(inside)))
                taken.update(inside)
    for layer in layers:
        if layer not in taken:
            name = next((name for name in _around(layer) if _inside(name, layers) == [layer] and modules.whole(name)), None)
            if name is not None:
                blocks.append(Block((name, *modules.following(name)), (layer,)))
                taken.add(layer)
    blocks.sort(key=lambda block: layers.index(block.layers[0]))
    return blocks, [layer for layer in layers if layer not in taken]


def _inside(name: str, layers: list[str]) -> list[str]:
    return [layer for layer in layers if layer == name or layer.startswith(f"{name}.")]


def _around(layer: str) -> Iterator[str]:
    """Return the names of the modules that contain a layer, the largest first, without the network itself; then the layer."""
    parts = layer.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
