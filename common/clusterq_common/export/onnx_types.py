"""ONNX types for integers by number of bits, and the opsets that have them. Free of torch."""

from collections.abc import Iterable

from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import Integers
from clusterq_common.setting_names import setting_name

# Bits of ONNX's integer types, with the first opset whose QuantizeLinear and DequantizeLinear accept them.
SINCE_OPSET = {2: 25, 4: 21, 8: 18}
NARROWEST: dict[Integers, int] = {"packed": 2, "int4": 4, "int8": 8}


def stored_bits(bits: int, integers: Integers) -> int:
    """Return the bits of the type in which integers of `bits` bits are stored.

    >>> [stored_bits(bits, "packed") for bits in (2, 3, 4, 5, 8)]
    [2, 4, 4, 8, 8]
    >>> stored_bits(2, "int4")
    4
    """
    return min(width for width in SINCE_OPSET if width >= max(bits, NARROWEST[integers]))


def shift_of(bits: int, integers: Integers) -> int:
    """Return the number of bits by which weights are shifted up in their type, with the scale divided accordingly.

    Weights are shifted to the top of 8 bits, and not at all in narrower types. Integer kernels round the values that they add to
    sums of products, biases above all, to multiples of scale(input) x scale(weight). With 4-bit weights shifted up, these multiples
    are as fine as at 8 bits, and the real values are the same.

    >>> shift_of(4, "int8"), shift_of(4, "packed"), shift_of(8, "packed")
    (4, 0, 0)
    """
    return 8 - bits if stored_bits(bits, integers) == 8 else 0


def activation_bits(bits: int, integers: Integers, opset: int) -> int:
    """Return the bits of an activation's type: its own where there is such a type, else 8 with the integers clipped.

    >>> activation_bits(4, "packed", 21), activation_bits(4, "packed", 18), activation_bits(3, "packed", 25)
    (4, 8, 8)
    """
    return bits if bits == stored_bits(bits, integers) and SINCE_OPSET[bits] <= opset else 8


def choose_opset(widths: Iterable[int], integers: Integers, opset: int | None) -> int:
    """Return the opset for weights of these bits: the oldest that has their types, unless one is given.

    Raises:
        ClusterqError: the given opset does not have them.
    """
    widths = sorted(set(widths), reverse=True)
    needed = max((SINCE_OPSET[stored_bits(bits, integers)] for bits in widths), default=SINCE_OPSET[8])
    if opset is None:
        return needed
    if opset < needed:
        wider: list[Integers] = [name for name in NARROWEST if choose_opset(widths, name, None) <= opset]
        raise ClusterqError(
            f"{opset} has no type for weights of {widths[-1]} bits, expected {needed} or later; use {setting_name('opset', needed)}, or "
            f"store them wider with {setting_name('integers', wider[0])}.",
            setting="opset",
        )
    return opset
