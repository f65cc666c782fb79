"""Opening of image files, which may have been made to cost far more time and memory than their pixels do."""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image

# The kinds whose suffixes are listed in `files.py`. Pillow goes by content, knows many more, and runs Ghostscript for one.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")
# Bytes of a file beside its pixels: profiles, EXIF, texts. A profile in a JPEG cannot be larger.
MOST_BESIDE = 1 << 24
# Bytes of a pixel in its file: twice four channels of 16 bits, since compression may also lengthen.
MOST_A_PIXEL = 16
# Reads beside those of pixels. Pillow reads tags, segments, chunks and comments one by one, in some places byte by byte.
MOST_READS = 1 << 15
BYTES_A_READ = 1 << 8
# Bytes of a file that Pillow reads in one piece, as WebP.
LARGEST_WHOLE = 1 << 26
# What costs far more than its bytes, by how a file begins: a scan of a JPEG passes over all pixels, of which encoders write about
# ten; a profile of a PNG, of which there is at most one, unpacks to a megabyte; a comment among a text image's numbers moves all the rest.
COSTLY = {
    b"\xff\xd8": (b"\xff\xda", "scans"),
    b"\x89P": (b"iCCP", "profiles"),
    **dict.fromkeys((b"P1", b"P2", b"P3"), (b"#", "comments")),
}
MOST_COSTLY = 64
# Tags of a TIFF, and numbers in one of them, such as the places of its strips.
MOST_TAGS = 1 << 12
MOST_NUMBERS = 1 << 16
BYTE_ORDERS = {b"II": "<", b"MM": ">"}
TIFF, BIG_TIFF = 42, 43
# Kinds of values in a TIFF that Pillow takes as they are: bytes, text and the like.
NO_NUMBERS = {1, 2, 6, 7}


@contextmanager
def open_image(source: Path | bytes) -> Iterator[Image.Image]:
    """Open an image file, or a file's bytes; pixels are decoded when they are asked for.

    Pillow's warnings are left out, while opening and until the image is closed: they are about what stands beside the pixels.

    Raises:
        OSError: it is no image of a known kind, or cannot be read.
        ValueError: it holds far more than an image of its size; this may show only when its pixels are decoded.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        file: _Bytes | _File = _Bytes(source) if isinstance(source, bytes) else _File(source)
        stack.enter_context(file)
        _refuse_long_directory(file)
        image = stack.enter_context(Image.open(file, formats=FORMATS))
        file.meter.opened(image.width * image.height)
        yield image


class _Meter:
    """Meter of what is read of an image file, with limits.

    Args:
        start: the first bytes of the file.
        length: number of its bytes.
    """

    def __init__(self, start: bytes, length: int) -> None:
        self.length = length
        self._mark, self._costly = COSTLY.get(start[:2], (b"", ""))
        self._found = 0
        self._last = b""
        self.opened(0)

    def opened(self, pixels: int) -> None:
        """Start the counts again, with limits for an image of so many pixels. Some decoders read the headers a second time."""
        self._allowed = MOST_BESIDE + MOST_A_PIXEL * pixels
        self._allowed_reads = MOST_READS + pixels
        self._reads = 0
        self._bytes = 0

    def size(self, asked: int | None) -> int:
        """Return the number of bytes to read. None and negative numbers ask for all that is left.

        Raises:
            ValueError: a limit is reached.
        """
        if asked is None or asked < 0:
            if self.length > LARGEST_WHOLE:
                raise ValueError(f"it has {self.length} bytes, expected at most {LARGEST_WHOLE} in a file of its kind")
            return self.length
        size = min(asked, self.length)
        self._reads += 1
        self._bytes += size
        if self._bytes > self._allowed:
            raise ValueError(f"it holds more than {MOST_BESIDE} bytes beside its pixels")
        if self._reads > self._allowed_reads + self._bytes // BYTES_A_READ:
            raise ValueError(f"it is made of more than {MOST_READS} small parts")
        return size

    def seen(self, data: bytes) -> bytes:
        """Count costly marks in bytes that were read. Returns the bytes.

        Raises:
            ValueError: there are too many.
        """
        if self._mark:
            self._found += (self._last + data).count(self._mark)
            self._last = data[1 - len(self._mark) :]
            if self._found > MOST_COSTLY:
                raise ValueError(f"it has more than {MOST_COSTLY} {self._costly}")
        return data


class _File(io.BufferedReader):
    """A metered file on disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.meter = _Meter(self.peek(2), path.stat().st_size)

    def read(self, size: int | None = -1, /) -> bytes:
        return self.meter.seen(super().read(self.meter.size(size)))


class _Bytes(io.BytesIO):
    """A metered file in memory."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.meter = _Meter(data, len(data))

    def read(self, size: int | None = -1, /) -> bytes:
        return self.meter.seen(super().read(self.meter.size(size)))


def _refuse_long_directory(file: _File | _Bytes) -> None:
    """Refuse a TIFF with more tags, or more numbers in one of them, than an image needs: Pillow makes objects of all of them."""
    start = file.read(16)
    order = BYTE_ORDERS.get(start[:2])
    if order is None or len(start) < 16 or not {TIFF, BIG_TIFF} & {*start[2:4]}:
        return
    big = start[2] == BIG_TIFF
    if start[3] == BIG_TIFF:
        raise ValueError("it is a BigTIFF whose numbers begin with their high byte, which Pillow takes for a plain TIFF")
    (place,) = struct.unpack_from(f"{order}{'Q' if big else 'L'}", start, 8 if big else 4)
    if place >= file.meter.length:
        return  # Pillow says what is wrong
    file.seek(place)
    head = file.read(8 if big else 2)
    count = int.from_bytes(head, "little" if order == "<" else "big")
    if count > MOST_TAGS:
        raise ValueError(f"it has {count} tags, expected at most {MOST_TAGS}")
    entry = struct.Struct(f"{order}{'HHQ8x' if big else 'HHL4x'}")
    entries = file.read(count * entry.size)
    for tag, kind, numbers in entry.iter_unpack(entries[: len(entries) // entry.size * entry.size]):
        if kind not in NO_NUMBERS and numbers > MOST_NUMBERS:
            raise ValueError(f"its tag {tag} has {numbers} numbers, expected at most {MOST_NUMBERS}")
