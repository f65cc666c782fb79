"""Bit-widths in the notation `w4a4`. Free of torch."""

import re
from dataclasses import dataclass

from clusterq_common.errors import ClusterqError

FLOAT = 32
ACCEPTED = "w4a4, with 2 to 8 bits each, or 32 for no quantization (w4a32, w32a32)"


@dataclass(frozen=True)
class Bits:
    """Bits of weights and of activations; 32 means unquantized.

    >>> Bits.parse("W4A8")
    Bits(weights=4, activations=8)
    >>> str(Bits(3, 3))
    'w3a3'
    """

    weights: int
    activations: int

    @classmethod
    def parse(cls, text: str, setting: str = "bits") -> "Bits":
        """Parse `w<weights>a<activations>`, in either case.

        Raises:
            ClusterqError: the text has another form, or bits outside 2-8 and 32.
        """
        match = re.fullmatch(r"w(\d{1,2})a(\d{1,2})", text.strip().lower())
        if not match:
            raise ClusterqError(f"{text!r} names no bit-widths; expected {ACCEPTED}.", setting=setting)
        widths = [int(number) for number in match.groups()]
        for width in widths:
            if width != FLOAT and not 2 <= width <= 8:
                raise ClusterqError(
                    f"{text!r} asks for {width} bits, which is not supported; expected {ACCEPTED}.", setting=setting
                )
        return cls(*widths)

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}"
