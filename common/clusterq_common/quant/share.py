"""Share of a network's arithmetic that is quantized."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Below this share of the multiply-adds, the unquantized modules are named.
LEAST_SHARE = 0.9
NAMES_SHOWN = 5


def quantized_share(model: nn.Module, layers: list[str], example: Tensor) -> tuple[float, list[str]]:
    """Count the multiply-adds of a forward pass that run in some layers.

    Args:
        model: a float network.
        layers: names of the layers that are quantized.
        example: (N, C, H, W).

    Returns:
        Their share of all multiply-adds, and the modules with the others, largest first, as `module (share %)`. Functional
            convolutions and matrix products count for the module whose forward calls them.
    """
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fast path of attention is one operation that the counter does not know.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), counter:
            model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    root = type(model).__name__
    own = {name: float(sum(by_operator.values())) for name, by_operator in counter.get_flop_counts().items()}
    whole = own.pop("Global", 0.0) or 1.0
    names = {f"{root}.{name}" for name in layers}
    inside = sum(count for name, count in own.items() if name in names)
    # The count of a module includes its children's; the difference is its own.
    left = {}
    for name, count in own.items():
        children = sum(other for child, other in own.items() if child.rpartition(".")[0] == name)
        if name not in names and count - children > 0:
            left[name.removeprefix(root).lstrip(".") or "forward"] = (count - children) / whole
    shown = sorted(left.items(), key=lambda item: -item[1])
    return inside / whole, [f"{name} ({100 * share:.0f} %)" for name, share in shown]
