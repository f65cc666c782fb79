"""A layer's weights as integers (`to_int()`), their packing into bytes, and folding of BatchNorm. Free of torch and onnx."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Treatment of the lowest integer of a signed grid where a channel is mirrored, since it has no negative: refuse the folding; widen
# the grid by one, for types that have room; give the channel a zero-point of -1; or move the integer up by one step.
Lowest = Literal["refuse", "widen", "zero-point", "clip"]


@dataclass(frozen=True)
class IntegerWeight:
    """Weights `(integers - zero_point) * scale`.

    Attributes:
        integers: int32, (out, ...), each in `low..high`; `-low` too, once a channel was mirrored in a wider type.
        scale: float32, (1,) or (out,).
        zero_point: int32, shape of `scale`.
        low, high: limits of the grid.
        bits: number of bits of the grid.
    """

    integers: Array
    scale: Array
    zero_point: Array
    low: int
    high: int
    bits: int

    @property
    def widened(self) -> bool:
        """Return whether an integer lies one above the grid."""
        return bool((self.integers > self.high).any())


def folded(weight: IntegerWeight, factor: Array, lowest: Lowest = "refuse") -> tuple[IntegerWeight, int] | None:
    """Return `weight` times `factor` (float64, (out,)), and how many integers were moved: 0 but for `lowest="clip"`.

    The factor's magnitude goes into the scales, its sign into the integers. Where it is negative, a channel's integers are
    mirrored. With zero-points of 0 (signed grids) they become their negatives. On other grids they become `low + high - integer`,
    with the zero-point mirrored likewise. The lowest integer of a signed grid has no negative; a channel that has both is treated
    as `lowest` says, and the result is None for `refuse`. With `zero-point` the channel is mirrored in the second way and gets a
    zero-point of -1. A scale is never below float32's smallest normal number: a factor of 0 keeps the integers and makes their
    values negligible.
    """
    rows, ends = factor.shape[0], weight.low + weight.high
    scale, zero_point = np.broadcast_to(weight.scale, (rows,)), np.broadcast_to(weight.zero_point, (rows,))
    turned, least = factor < 0, weight.integers.reshape(rows, -1).min(axis=1)
    # On a narrow grid the lowest integer has its negative.
    stuck = turned & (weight.low < 0) & (ends < 0) & (least == weight.low)
    if stuck.any() and lowest == "refuse":
        return None
    # Sum of an integer and its mirror image.
    total = np.where((stuck & (lowest == "zero-point")) | (weight.low == 0), ends, 0)
    column = (-1, *[1] * (weight.integers.ndim - 1))
    moved = turned.reshape(column) & (weight.low < 0) & (ends < 0) & (weight.integers == weight.low) & (lowest == "clip")
    integers = np.where(turned.reshape(column), total.reshape(column) - weight.integers - moved, weight.integers)
    scale = np.maximum(np.abs(factor) * scale.astype(np.float64), np.finfo(np.float32).tiny).astype(np.float32)
    points = np.where(turned, total - zero_point, zero_point)
    return replace(weight, integers=integers.astype(np.int32), scale=scale, zero_point=points.astype(np.int32)), int(
        moved.sum()
    )


def pack(values: Array, bits: int) -> bytes:
    """Pack the low `bits` bits of each integer one after another, first value and lowest bit first.

    The last byte is padded with zeros. Negative integers are in two's complement. At 2, 4 and 8 bits this is the layout of ONNX's
    types.

    >>> pack(np.array([1, -1, 7]), 4).hex()
    'f107'
    """
    flat = values.reshape(-1, 1).astype(np.int64)
    return np.packbits(((flat >> np.arange(bits)) & 1).astype(np.uint8), bitorder="little").tobytes()
