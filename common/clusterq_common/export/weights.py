"""A layer's weights as integers: what `to_int()` gives, packed into bytes, and with a BatchNorm folded in. Free of torch and onnx."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class IntegerWeight:
    """Weights `(integers - zero_point) * scale`.

    Attributes:
        integers: int32, (out, ...), each in `low..high`.
        scale: float32, (1,) or (out,).
        zero_point: int32, shape of `scale`.
        low, high: limits of the grid.
        bits: of the grid.
    """

    integers: Array
    scale: Array
    zero_point: Array
    low: int
    high: int
    bits: int


def folded(weight: IntegerWeight, factor: Array, *, zero_points: bool = False) -> IntegerWeight | None:
    """`weight` times `factor` (float64, (out,)): the factor's size goes into the scales, its sign into the integers.

    Where the factor is negative a channel's integers turn around: to their negatives where zero-points are 0 (signed grids), to
    `low + high - integer` with the zero-point turned likewise on other grids. The lowest integer of a signed grid has no negative: then
    None, or, with `zero_points`, such a channel is turned in the second way, after which its zero-point is -1. A scale is never
    below float32's smallest normal number: a factor of 0 leaves the integers and makes them count for nothing.
    """
    rows, ends = factor.shape[0], weight.low + weight.high
    scale, zero_point = np.broadcast_to(weight.scale, (rows,)), np.broadcast_to(weight.zero_point, (rows,))
    turned, lowest = factor < 0, weight.integers.reshape(rows, -1).min(axis=1)
    stuck = turned & (weight.low < 0) & (lowest == weight.low)
    if stuck.any() and not zero_points:
        return None
    # What an integer and its mirror image add up to.
    total = np.where(stuck | (weight.low == 0), ends, 0)
    column = (-1, *[1] * (weight.integers.ndim - 1))
    integers = np.where(turned.reshape(column), total.reshape(column) - weight.integers, weight.integers)
    scale = np.maximum(np.abs(factor) * scale.astype(np.float64), np.finfo(np.float32).tiny).astype(np.float32)
    points = np.where(turned, total - zero_point, zero_point)
    return replace(weight, integers=integers.astype(np.int32), scale=scale, zero_point=points.astype(np.int32))


def pack(values: Array, bits: int) -> bytes:
    """The low `bits` bits of each integer, one after another, first value and lowest bit first; the last byte filled up with zeros.

    Negative integers as two's complement. At 2, 4 and 8 bits this is how ONNX lays out its types.

    >>> pack(np.array([1, -1, 7]), 4).hex()
    'f107'
    """
    flat = values.reshape(-1, 1).astype(np.int64)
    return np.packbits(((flat >> np.arange(bits)) & 1).astype(np.uint8), bitorder="little").tobytes()
