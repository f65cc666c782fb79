"""The teacher's deepest features: what its last layer, the classifier, is given."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from clusterq_common.quant.structure import quantizable_layers


class Features:
    """Those of the latest forward pass."""

    def __init__(self) -> None:
        self.latest: Tensor | None = None

    def take(self) -> Tensor:
        """(N, D) float32; each pass gives them once."""
        found, self.latest = self.latest, None
        assert found is not None, "the model has not run"
        return found


@contextmanager
def penultimate(model: nn.Module, example: Tensor) -> Iterator[Features]:
    """Tap the input of the convolution or linear layer that runs last, for the length of the block.

    Of a convolution, as some networks have it for a classifier, the mean over positions.

    Args:
        model: a classifier.
        example: (1, C, S, S), any values: finds out which layer is the last.

    Raises:
        ClusterqError: no convolution or linear layer runs.
    """
    features = Features()

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        found = args[0].detach().float()
        features.latest = found.flatten(2).mean(2) if found.dim() > 2 else found

    handle = model.get_submodule(quantizable_layers(model, example)[-1]).register_forward_pre_hook(keep)
    try:
        yield features
    finally:
        handle.remove()
