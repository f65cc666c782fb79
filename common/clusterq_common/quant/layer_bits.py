"""Bits of each layer: the common ones, those of the first and last layer, and those given by patterns."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from clusterq_common.errors import ClusterqError
from clusterq_common.quant.bits import FLOAT, Bits
from clusterq_common.quant.config import QuantConfig

NAMES_OFFERED = 3


def bits_of(name: str, config: QuantConfig, *, end: bool = False) -> Bits:
    """Return the bits of the layer or activation called `name`; `end`: it is the first or the last layer.

    If weights or activations are unquantized everywhere, they stay so in these two layers, unless a pattern says otherwise.
    """
    for pattern, bits in reversed(config.layer_rules):
        if matches(name, pattern):
            return bits
    common = config.parsed_bits
    if not end or config.first_last_bits is None:
        return common
    weights, activations = (
        width if width == FLOAT else config.first_last_bits for width in (common.weights, common.activations)
    )
    return Bits(weights, activations)


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern matches this layer: it matches the layer's name, or a block that contains the layer."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def refuse_unused_patterns(config: QuantConfig, names: Iterable[str]) -> None:
    """Raise an error for patterns that match nothing.

    Args:
        config: settings with the patterns.
        names: names of everything that can be quantized.

    Raises:
        ClusterqError: a pattern matches nothing; it suggests the nearest names.
    """
    names = list(names)
    for pattern, _ in config.layer_rules:
        if not any(matches(name, pattern) for name in names):
            blocks = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
            near = difflib.get_close_matches(pattern, sorted(blocks), n=NAMES_OFFERED, cutoff=0.3) or names[:NAMES_OFFERED]
            raise ClusterqError(
                f"{pattern!r} matches no layer of this model; did you mean {', '.join(near)}?", setting="layer_bits"
            )
