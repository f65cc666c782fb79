"""Sizes of images: parsing and printing `64x128`, and their bounds. Free of torch."""

import operator
import re
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

# Far above what classifiers take: images beyond it were asked for to fill the memory.
LARGEST_SIDE = 4096
# Longer side up to which images are small, as those of CIFAR and of digits are. The papers' settings and the customary preprocessing
# differ between them and larger images, as ImageNet's.
SMALL_SIDE = 64
_TEXT = re.compile(r"([0-9]{1,9})(?:x([0-9]{1,9}))?")
EXPECTED = "expected one side of a square in pixels, as 224, or height and width, as 64x128"


def parse_size(value: Any) -> int | tuple[int, int]:
    """Read a size: `224`, `"224"`, `"64x128"` or a pair (height, width).

    Returns:
        The side of a square, or (height, width) of any other image, so that equal sizes are equal values.

    Raises:
        ValueError: anything else, or a side outside 1 to 4096.
    """
    height, width = _sides(value)
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise ValueError(f"sides must lie between 1 and {LARGEST_SIDE} pixels")
    return height if height == width else (height, width)


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def show_size(size: int | tuple[int, int]) -> int | str:
    """Return a size as files hold it: the side of a square, else `64x128`, height first. `parse_size` reads it."""
    return size if isinstance(size, int) else f"{size[0]}x{size[1]}"


def _sides(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        match = _TEXT.fullmatch(value)
        if match is None:
            raise ValueError(EXPECTED)
        return int(match[1]), int(match[2] or match[1])
    pair = value if isinstance(value, list | tuple) else (value, value)
    # True and False count as whole numbers in Python, but not here.
    if len(pair) != 2 or any(isinstance(side, bool) for side in pair):
        raise ValueError(EXPECTED)
    try:
        return operator.index(pair[0]), operator.index(pair[1])
    except TypeError as error:
        raise ValueError(EXPECTED) from error


# In settings, manifests and exported files: a whole number for a square, which is what versions for squares alone wrote.
Size = Annotated[
    int | tuple[int, int],
    PlainValidator(parse_size),
    PlainSerializer(show_size, return_type=int | str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": LARGEST_SIDE},
                {"type": "string", "pattern": "^[1-9][0-9]{0,3}x[1-9][0-9]{0,3}$"},
            ]
        }
    ),
]
