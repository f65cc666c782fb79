"""Images of more than eight bits a pixel, as images of eight. Pillow's own conversion clips them at 255 and says nothing."""

import math
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
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO = 0
UNSIGNED, SIGNED = 1, 2
# Scanners and cameras write 10 or 12 bits into 16: the picture is then nearly black.
TWELVE_BITS = 2**12 - 1
# Values that are computed with in float64 at once.
AT_ONCE = 1 << 20


class EightBits(NamedTuple):
    """An image of eight bits a channel.

    Attributes:
        image: the image.
        outside: True where some values lay outside the range that was given.
        narrow: True where no range was given and 16 bits hold values of at most 12.
    """

    image: Image.Image
    outside: bool
    narrow: bool = False


def is_deep(image: Image.Image) -> bool:
    """Return whether a pixel is one channel that eight unsigned bits do not hold: 16 or 32 bits, a float, or a signed number."""
    return image.mode in {"I", "F"} or image.mode.startswith("I;16") or is_signed(image)


def is_signed(image: Image.Image) -> bool:
    """Return whether a pixel is a signed number of eight bits, which Pillow gives as an unsigned one."""
    return image.mode == "L" and getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT) == (SIGNED,)


def largest_value(image: Image.Image) -> int | None:
    """The value that is white by the file's own depth: None for 32 bits, floats and signed numbers, where a file does not say."""
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
        ClusterqError: an image of 32 bits, floats or signed numbers without a range.
        OSError, ValueError: the pixels cannot be decoded, or are no numbers.
    """
    if not is_deep(image):
        return EightBits(image, outside=False)
    largest = largest_value(image)
    # Pillow turns 8-bit pictures of this kind round, deeper ones not.
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    stored: Values = np.asarray(image)
    if image.mode == "I" and tags.get(BITS_PER_SAMPLE) == (32,) and tags.get(SAMPLE_FORMAT, (UNSIGNED,)) == (UNSIGNED,):
        stored = stored.view(np.uint32)  # Pillow gives unsigned values as signed ones
    if is_signed(image):
        stored = stored.view(np.int8)
    least, most = float(stored.min()), float(stored.max())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError("some pixels are no finite numbers")
    if pixel_range is None and largest is None:
        kind = {"F": "floats", "L": "signed 8 bits"}.get(image.mode, "32 bits")
        raise ClusterqError(
            f"{setting_name('pixel_range')} is missing: {name} has pixels of mode {image.mode} ({kind}) from "
            f"{least:g} to {most:g}, expected 8 or 16 bits; pass {setting_name('pixel_range', 'LOW,HIGH')}, the values that are black and white."
        )
    low, high = pixel_range or (0.0, float(largest or 0))
    narrow = pixel_range is None and largest == SIXTEEN_BITS and 0 < most <= TWELVE_BITS and not white_is_zero
    scaled = _scaled(stored, low, high)
    return EightBits(Image.fromarray(255 - scaled if white_is_zero else scaled), least < low or most > high, narrow)


def _scaled(values: Values, low: float, high: float) -> Values:
    """(H, W) numbers as uint8: `low` and below as 0, `high` and above as 255, rounded to the nearest. A few rows at a time."""
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, AT_ONCE // values.shape[1])
    for top in range(0, len(values), rows):
        part = values[top : top + rows].astype(np.float64)
        scaled[top : top + rows] = np.rint((part.clip(low, high) - low) * (255 / (high - low)))
    return scaled
