"""Allocation of bits to layers: the least total error within a budget of bits."""

from collections.abc import Mapping, Sequence

import numpy as np

# Steps into which a budget is divided. Costs are rounded up to them, so a result never exceeds the budget.
STEPS = 20_000


def allocate(sizes: Sequence[int], errors: Sequence[Mapping[int, float]], budget: int) -> list[int] | None:
    """Choose one bit-width for each layer so that the errors' sum is least and the bits' sum is at most `budget`.

    This is the multiple-choice knapsack problem, solved by dynamic programming over the budget. The result is exact where the
    budget has at most `STEPS` units; above that, sizes are rounded up by at most one step a layer.

    Args:
        sizes: number of values of each layer.
        errors: for each layer, the error at each bit-width that it may have.
        budget: largest sum of `size * bits`.

    Returns:
        The bit-width of each layer, or None where even the smallest bit-widths exceed the budget.

    Examples:
        >>> allocate([100, 10], [{2: 0.5, 4: 0.1}, {2: 0.9, 4: 0.0}], budget=250)
        [2, 4]
    """
    least = [min(options) for options in errors]
    if sum(size * bits for size, bits in zip(sizes, least, strict=True)) > budget:
        return None
    # Only what lies above the smallest widths is chosen, so that rounding up never makes a possible choice impossible.
    spare = budget - sum(size * bits for size, bits in zip(sizes, least, strict=True))
    unit = max(1, -(-spare // STEPS))
    room = spare // unit
    total = np.zeros(room + 1)
    chosen: list[np.ndarray] = []
    for size, options, smallest in zip(sizes, errors, least, strict=True):
        best = np.full(room + 1, np.inf)
        choice = np.full(room + 1, smallest, dtype=np.int8)
        for bits in sorted(options):
            cost = -(-size * (bits - smallest) // unit)
            if cost > room:
                continue
            candidate = np.full(room + 1, np.inf)
            candidate[cost:] = total[: room + 1 - cost] + options[bits]
            better = candidate < best
            best[better], choice[better] = candidate[better], bits
        total = best
        chosen.append(choice)
    place, result = room, []
    for size, choice, smallest in zip(reversed(sizes), reversed(chosen), reversed(least), strict=True):
        bits = int(choice[place])
        result.append(bits)
        place -= -(-size * (bits - smallest) // unit)
    return result[::-1]
