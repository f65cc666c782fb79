"""Images side by side as one picture. Free of torch."""

from collections.abc import Sequence

import numpy as np

from clusterq_common.images.png import Array


def contact_sheet(images: Sequence[Array], columns: int, *, gap: int, border: int = 0) -> Array:
    """Return images as one picture, row by row; white between them, around them and in places without one.

    Args:
        images: at least one, all of the same shape (height, width, channels), uint8.
        columns: images in a row.
        gap: pixels between two images.
        border: pixels around all.

    Examples:
        >>> black = np.zeros((4, 6, 1), dtype=np.uint8)
        >>> contact_sheet([black] * 3, 2, gap=1, border=2).shape
        (13, 17, 1)
    """
    height, width, channels = images[0].shape
    down, across = height + gap, width + gap
    rows = -(-len(images) // columns)
    sheet = np.full((rows * down - gap + 2 * border, columns * across - gap + 2 * border, channels), 255, dtype=np.uint8)
    for place, image in enumerate(images):
        top, left = border + place // columns * down, border + place % columns * across
        sheet[top : top + height, left : left + width] = image
    return sheet
