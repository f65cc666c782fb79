"""PNG bytes and arrays. Free of torch, so that processes which only encode start quickly."""

import io
from typing import Any

import numpy as np
from PIL import Image

from clusterq_common.errors import ClusterqError

# (H, W, C) uint8
Array = np.ndarray[Any, np.dtype[np.uint8]]

MODES = {1: "L", 3: "RGB"}
COLOUR_TYPES = {1: 0, 3: 2}
# In a PNG, behind its signature and the header's width and height; the colour type follows.
BITS_AT = 24
# A fixed level: another one would give other bytes for the same pixels.
LEVEL = 6


def encode(pixels: Array) -> bytes:
    """An image (H, W, C) uint8 with one or three channels as PNG: the same bytes each time.

    Raises:
        ClusterqError: another number of channels.
    """
    if pixels.shape[2] not in MODES:
        raise ClusterqError(
            f"an image has {pixels.shape[2]} channels, expected 1 or 3; choose a classifier of grey or colour images."
        )
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", compress_level=LEVEL)
    return buffer.getvalue()


def decode(data: bytes, size: tuple[int, int], channels: int) -> Array:
    """PNG bytes as (height, width, channels) uint8; `size` is (height, width).

    The header is compared with what is expected before anything is decompressed, so that a small file cannot ask for a
    huge image.

    Raises:
        ClusterqError: no PNG, another size or mode, or broken data.
    """
    height, width = size
    mode = MODES.get(channels)
    expected = f"expected a {mode} PNG of {height}x{width} (height x width); write the shards again"
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.size != (width, height) or image.mode != mode:
            raise ClusterqError(f"an image is {image.mode} {image.size[1]}x{image.size[0]}, {expected}.")
        # PIL hands out images of 16 bits, or of fewer than 8, as ones of 8, and leaves transparency to whoever asks for it.
        bits, kind = data[BITS_AT], data[BITS_AT + 1]
        if (bits, kind) != (8, COLOUR_TYPES[channels]) or "transparency" in image.info or getattr(image, "n_frames", 1) != 1:
            raise ClusterqError(
                f"an image has {bits} bits, colour type {kind} or transparency or frames besides, expected plain 8 bits, colour type "
                f"{COLOUR_TYPES[channels]}; write the shards again."
            )
        array = np.array(image)
    except ClusterqError:
        raise
    except Exception as error:  # a decoder may raise anything on bytes made to confuse it
        raise ClusterqError(f"an image cannot be decoded ({type(error).__name__}: {error}), {expected}.") from error
    return array.reshape(height, width, channels)
