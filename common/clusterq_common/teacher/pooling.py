"""The last pooling of pytorchcv's networks, for images of other sizes than a network was published for."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# Where pytorchcv has it; the second is Xception's.
PLACES = ("features.final_pool", "features.final_block.pool")


@contextmanager
def last_pooling_over_all(model: nn.Module) -> Iterator[str]:
    """Let a network's last pooling average all places instead of a window of one size; undone where the block raises.

    At the published size both are the same. Networks of anyone else are left as they are: what their authors mean is not known.

    Yields:
        What was changed, in words; empty where nothing was.
    """
    modules = dict(model.named_modules()) if type(model).__module__.startswith("pytorchcv.") else {}
    name = next((place for place in PLACES if isinstance(modules.get(place), nn.AvgPool2d)), "")
    if not name:
        yield ""
        return
    window = modules[name]
    model.set_submodule(name, nn.AdaptiveAvgPool2d(1))
    try:
        yield f"{name} averages all places, since its window of {window.kernel_size} does not fit images of this size"
    except BaseException:  # also where the block is interrupted
        model.set_submodule(name, window)
        raise
