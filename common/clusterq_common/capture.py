"""Forward hooks inside a `with` block: what flows into a network's layers, and out of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class Call(NamedTuple):
    """One run of a layer: its name and what it was called with."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def only_tensor(self) -> Tensor | None:
        """The argument where there is one alone, and it is a tensor; else None."""
        alone = len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Tensor)
        return self.args[0] if alone else None


@contextmanager
def capture(
    layers: Mapping[str, nn.Module],
    *,
    before: Callable[[Call], Any] | None = None,
    after: Callable[[Call, Any], Any] | None = None,
) -> Iterator[None]:
    """Call functions whenever one of these layers runs within the block. The hooks are removed after it, also after an error.

    A copy of a layer made inside the block is not captured, although a deep copy takes its hooks along.

    Args:
        layers: the layers, by any names.
        before: called with the run before the layer computes. A result other than None, a tuple, replaces the positional arguments.
        after: called with the run and the layer's output. A result other than None replaces the output.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> with capture(dict(net.named_children()), after=lambda call, output: print(call.name, tuple(output.shape))):
        ...     _ = net(torch.zeros(5, 2))
        0 (5, 3)
        1 (5, 3)
    """

    def entering(name: str, layer: nn.Module) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            replaced = before(Call(name, args, kwargs)) if before is not None and module is layer else None
            return None if replaced is None else (replaced, kwargs)

        return hook

    def leaving(name: str, layer: nn.Module) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            return after(Call(name, args, kwargs), output) if after is not None and module is layer else None

        return hook

    handles = []
    try:
        for name, layer in layers.items():
            if before is not None:
                handles.append(layer.register_forward_pre_hook(entering(name, layer), with_kwargs=True))
            if after is not None:
                handles.append(layer.register_forward_hook(leaving(name, layer), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def submodules(model: nn.Module, names: tuple[str, ...] | list[str]) -> dict[str, nn.Module]:
    """Return the named modules of a model by name, in the order of the names."""
    return {name: model.get_submodule(name) for name in names}


class ClassifierInput:
    """Input of the last layer with weights in the latest forward pass, the network's penultimate features."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None

    @property
    def latest(self) -> Tensor:
        """(N, D), with gradient; a mean over positions where the classifier is a convolution."""
        assert self._seen is not None, "no forward pass yet"
        return self._seen if self._seen.dim() == 2 else self._seen.flatten(2).mean(2)

    def see(self, call: Call) -> None:
        """Store the input of a layer with weights that is about to run. The last such layer is the classifier."""
        self._seen = call.args[0]


@contextmanager
def classifier_input(model: nn.Module) -> Iterator[ClassifierInput]:
    """Record the classifier's input, the input of the convolution or linear layer that runs last, within the block."""
    features = ClassifierInput()
    weighted = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    with capture(weighted, before=features.see):
        yield features
