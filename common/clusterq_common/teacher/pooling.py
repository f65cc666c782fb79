"""The last pooling of pytorchcv's networks, for images of other sizes than a network was published for."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def last_pooling_over_all(model: nn.Module) -> Iterator[str]:
    """Let a network's last pooling average all places instead of a window of one size; undone where the block raises.

    pytorchcv's classifiers have it as `features.final_pool`. At the published size both are the same.

    Yields:
        What was changed, in words; empty where the network has no such pooling, and is left as it is.
    """
    features = getattr(model, "features", None)
    pooling = getattr(features, "final_pool", None)
    if not isinstance(features, nn.Module) or not isinstance(pooling, nn.AvgPool2d):
        yield ""
        return
    features.final_pool = nn.AdaptiveAvgPool2d(1)
    try:
        yield f"features.final_pool averages all places, since its window of {pooling.kernel_size} does not fit images of this size"
    except BaseException:
        features.final_pool = pooling
        raise
