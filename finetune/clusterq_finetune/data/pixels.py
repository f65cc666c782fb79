"""Images of more than eight bits a pixel, as images of eight. Pillow's own conversion clips them at 255 and says nothing."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name

# Low and high: the values that are shown as black and as white.
PixelRange = tuple[float, float]
Values = np.ndarray[Any, np.dtype[Any]]

SIXTEEN_BITS = 2**16 - 1
# Formats in which Pillow gives 16 bits as its 32-bit mode I; the values fill all 16 in both.
SIXTEEN_IN_MODE_I = {"PNG", "PPM"}
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
WHITE_IS_ZERO = 0


class EightBits(NamedTuple):
    """An image of eight bits a channel, and whether some of its values lay outside the range that was given."""

    image: Image.Image
    outside: bool


def is_deep(image: Image.Image) -> bool:
    """Return whether a pixel is one channel of more than eight bits: 16 or 32, or a float."""
    return image.mode in {"I", "F"} or image.mode.startswith("I;16")


def largest_value(image: Image.Image) -> int | None:
    """The value that is white by the file's own depth: None for 32 bits and for floats, where a file does not say."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        return 2 ** int(tags[BITS_PER_SAMPLE][0]) - 1 if BITS_PER_SAMPLE in tags else SIXTEEN_BITS
    return SIXTEEN_BITS if image.mode == "I" and image.format in SIXTEEN_IN_MODE_I else None


def eight_bits(image: Image.Image, pixel_range: PixelRange | None, name: str) -> EightBits:
    """An image of at most eight bits a channel; one that is so already is returned as it is.

    Args:
        image: as PIL opens it.
        pixel_range: the values that are black and white, for deeper images; by their depth if left out.
        name: of the image, for errors.

    Raises:
        ClusterqError: an image of 32 bits or floats without a range.
        OSError, ValueError: the pixels cannot be decoded, or are no numbers.
    """
    if not is_deep(image):
        return EightBits(image, outside=False)
    largest = largest_value(image)
    # Pillow turns 8-bit pictures of this kind round, deeper ones not.
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    values: Values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("some pixels are no finite numbers")
    if pixel_range is None and largest is None:
        raise ClusterqError(
            f"{setting_name('pixel_range')} is missing: {name} has pixels of mode {image.mode} ({'floats' if image.mode == 'F' else '32 bits'}) from "
            f"{values.min():g} to {values.max():g}, expected 8 or 16 bits; pass {setting_name('pixel_range', 'LOW,HIGH')}, the values that are black and white."
        )
    low, high = pixel_range or (0.0, float(largest or 0))
    outside = bool((values < low).any() or (values > high).any())
    scaled = np.rint((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)
    return EightBits(Image.fromarray(255 - scaled if white_is_zero else scaled), outside)
