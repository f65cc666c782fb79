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


def folded(weight: IntegerWeight, factor: Array) -> IntegerWeight | None:
    """`weight` times `factor` (float64, (out,)): the factor's size goes into the scales, its sign into the integers.

    An integer with a negative factor turns around: to its negative where the zero-point is fixed at 0 (signed grids), else to
    `low + high - integer`, with the zero-point turned likewise. None where that leaves the grid: the lowest integer of a signed grid has
    no negative. A scale is never below float32's smallest normal number: a factor of 0 leaves the integers and makes them count for
    nothing.
    """
    rows = factor.shape[0]
    scale, zero_point = np.broadcast_to(weight.scale, (rows,)), np.broadcast_to(weight.zero_point, (rows,))
    integers, turned = weight.integers, factor < 0
    if turned.any():
        mirror = 0 if weight.low < 0 else weight.low + weight.high
        column = turned.reshape(-1, *[1] * (integers.ndim - 1))
        integers = np.where(column, mirror - integers, integers)
        zero_point = np.where(turned, mirror - zero_point, zero_point)
        if integers.max() > weight.high:
            return None
    scale = np.maximum(np.abs(factor) * scale.astype(np.float64), np.finfo(np.float32).tiny).astype(np.float32)
    return replace(weight, integers=integers, scale=scale, zero_point=zero_point.astype(np.int32))


def pack(values: Array, bits: int) -> bytes:
    """The low `bits` bits of each integer, one after another, first value and lowest bit first; the last byte filled up with zeros.

    Negative integers as two's complement. At 2, 4 and 8 bits this is how ONNX lays out its types.

    >>> pack(np.array([1, -1, 7]), 4).hex()
    'f107'
    """
    flat = values.reshape(-1, 1).astype(np.int64)
    return np.packbits(((flat >> np.arange(bits)) & 1).astype(np.uint8), bitorder="little").tobytes()
