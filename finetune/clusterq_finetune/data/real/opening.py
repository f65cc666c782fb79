"""Opening of image files, whose headers may have been made to take long."""

import io
import re
from pathlib import Path

from PIL import Image

# Bytes in which the header of a Netpbm file (.ppm, .pgm) must end. Pillow reads such headers byte by byte, comments included.
LONGEST_HEADER = 1 << 16
NETPBM = re.compile(rb"P[1-7fF]")
COMMENT = re.compile(rb"#[^\r\n]*[\r\n]")
# Words of the shortest header: the kind, width and height.
LEAST_WORDS = 3


def open_image(source: Path | bytes) -> Image.Image:
    """Open an image file, or a file's bytes; pixels are decoded later.

    Raises:
        OSError: it is no image, or cannot be read.
        ValueError: it is a Netpbm file whose header does not end within 64 KiB.
    """
    if isinstance(source, bytes):
        _refuse_long_header(source[:LONGEST_HEADER])
        return Image.open(io.BytesIO(source))
    with source.open("rb") as file:
        start = file.read(2)
        if NETPBM.match(start):
            _refuse_long_header(start + file.read(LONGEST_HEADER - 2))
    return Image.open(source)


def _refuse_long_header(start: bytes) -> None:
    if NETPBM.match(start) and len(COMMENT.sub(b" ", start).partition(b"#")[0].split(maxsplit=LEAST_WORDS)) < LEAST_WORDS:
        raise ValueError(f"its header does not end within {LONGEST_HEADER} bytes")
