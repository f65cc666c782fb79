"""The teacher's penultimate features: the input of its last layer, the classifier."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from clusterq_common.quant.structure import quantizable_layers


class Features:
    """Features of the latest forward pass."""

    def __init__(self) -> None:
        self.latest: Tensor | None = None

    def take(self) -> Tensor:
        """Return the features, (N, D) float32, once for each forward pass."""
        features, self.latest = self.latest, None
        assert features is not None, "the model has not run"
        return features


@contextmanager
def penultimate(model: nn.Module, example: Tensor) -> Iterator[Features]:
    """Record the input of the convolution or linear layer that runs last, within the block.

    For a convolution, which some networks use as classifier, it is the mean over positions.

    Args:
        model: a classifier.
        example: (1, C, H, W), any values; one forward pass on it determines the last layer.

    Raises:
        ClusterqError: no convolution or linear layer runs.
    """
    features = Features()

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        values = args[0].detach().float()
        features.latest = values.flatten(2).mean(2) if values.dim() > 2 else values

    handle = model.get_submodule(quantizable_layers(model, example)[-1]).register_forward_pre_hook(keep)
    try:
        yield features
    finally:
        handle.remove()
