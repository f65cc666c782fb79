"""Exact nearest neighbours in blocks of bounded size."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Numbers of queries and of candidates whose distances are held at once, and of values in one block of differences.
ROWS, COLUMNS, DIFFERENCES = 256, 1024, 4_000_000


@dataclass(frozen=True)
class Neighbours:
    """The K nearest candidates of each of Q queries, nearest first; of equally near ones the one with the lower number first.

    Attributes:
        distances: (Q, K) float64, Euclidean.
        numbers: (Q, K) int64, numbers of the candidates.
    """

    distances: Tensor
    numbers: Tensor


def nearest(versions: list[Tensor], candidates: Tensor, most: int, *, whole: bool) -> Neighbours:
    """Return the nearest candidates of each query, the distance being the least over its versions.

    Memory is bounded by blocks of 256 queries and 1024 candidates, besides the result.

    Args:
        versions: (Q, D) each, any dtype.
        candidates: (N, D), at least one.
        most: K, or all candidates where there are fewer.
        whole: whether all values are whole numbers below 2^16. Squares and sums are then exact in float64; otherwise distances are
            computed anew from differences, since the expanded square of equal vectors leaves a rounding error with a large root.
    """
    kept = min(most, len(candidates))
    # Distances do not change, and the squares that cancel get smaller.
    middle = 0.0 if whole else candidates.double().mean(0)
    pieces = [
        _rows([version[start : start + ROWS] for version in versions], candidates, kept, middle)
        for start in range(0, len(versions[0]), ROWS)
    ]
    squares, numbers = torch.cat([part for part, _ in pieces]), torch.cat([part for _, part in pieces])
    if not whole:
        squares = _by_differences(versions, candidates, numbers)
        squares, order = squares.sort(dim=1, stable=True)
        numbers = numbers.gather(1, order)
    return Neighbours(squares.clamp_min(0).sqrt(), numbers)


def _rows(versions: list[Tensor], candidates: Tensor, kept: int, middle: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return squared distances and numbers of the nearest candidates of some queries, (q, kept) each."""
    own = [version.double() - middle for version in versions]
    best = torch.empty(len(own[0]), 0, dtype=torch.float64)
    numbers = torch.empty(len(own[0]), 0, dtype=torch.int64)
    for start in range(0, len(candidates), COLUMNS):
        theirs = candidates[start : start + COLUMNS].double() - middle
        norms = theirs.square().sum(1)
        # |q|^2 + |c|^2 - 2 q.c, the least over versions.
        squares = torch.stack([version.square().sum(1)[:, None] + norms - 2 * version @ theirs.T for version in own]).amin(0)
        here = torch.arange(start, start + len(theirs)).expand(len(squares), -1)
        best, order = torch.cat([best, squares], 1).sort(dim=1, stable=True)
        numbers = torch.cat([numbers, here], 1).gather(1, order)[:, :kept]
        best = best[:, :kept]
    return best, numbers


def _by_differences(versions: list[Tensor], candidates: Tensor, numbers: Tensor) -> Tensor:
    """Return the squared distances of these pairs, (Q, K)."""
    kept = numbers.shape[1]
    rows = max(1, DIFFERENCES // (kept * candidates.shape[1]))
    parts = []
    for start in range(0, len(numbers), rows):
        theirs = candidates[numbers[start : start + rows]].double()
        each = [(version[start : start + rows, None].double() - theirs).square().sum(2) for version in versions]
        parts.append(torch.stack(each).amin(0))
    return torch.cat(parts)
