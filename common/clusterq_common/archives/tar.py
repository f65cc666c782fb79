"""Offsets of the plain files in a tar, from its headers alone. Only what is needed is parsed, because the tar may be a stranger's."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

BLOCK = 512
# Of an extended header, which holds the name of a file and its times: a thousand times what archivers write.
LARGEST_EXTENSION = 1 << 16
NO_BLOCK = bytes(BLOCK)
LOOK_AT_ONCE = 1 << 20

_PLAIN, _FOLDER = (b"0", b"\0"), b"5"
_PAX, _PAX_OF_ALL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_EXTENSIONS = (_PAX, _PAX_OF_ALL, _LONG_NAME, _LONG_LINK)
_POSIX, _GNU = b"ustar\x0000", b"ustar  \0"
_MOST_DIGITS = len(str(LARGEST_EXTENSION))


class TarFormatError(Exception):
    """Refused tar. The message fits between brackets."""


class Member(NamedTuple):
    """One entry of a tar: `size` bytes from `offset`; `plain` unless it is a folder, a link, an extended header or the like."""

    name: str
    offset: int
    size: int
    plain: bool


@dataclass
class TarHeaders:
    """Iterator over the entries of a tar.

    Every header has to be whole: POSIX's or GNU's mark, a checksum that fits, an octal size. What comes behind the mark of the end is
    not looked at.

    Args:
        file: open for reading, from its start.
        extended: understand the extended headers that hold long names (POSIX's pax and GNU's), and pass over folders. Without it,
            whatever is no plain file is handed out as such, and is where reading ends.

    Attributes:
        end: where the mark of the end begins, once all entries have been seen.
    """

    file: BinaryIO
    extended: bool = False
    end: int | None = None

    def __iter__(self) -> Iterator[Member]:
        """Yield all entries in order.

        Raises:
            TarFormatError: it is no tar, or holds what this reader does not understand.
        """
        length = self.file.seek(0, os.SEEK_END)
        place, long_names = 0, _LongNames()
        while True:
            header = self._read(place, BLOCK)
            if len(header) < BLOCK:
                raise TarFormatError("it ends without the mark of its end")
            if header == NO_BLOCK:
                break
            name, size, kind = _fields(header)
            behind = place + BLOCK + size + -size % BLOCK
            is_extension = self.extended and kind in _EXTENSIONS
            if not is_extension:
                name = long_names.take(name)
                plain = kind in _PLAIN and not (self.extended and name.endswith("/"))
                yield Member(name, place + BLOCK, size, plain)
                if not plain and not (self.extended and size == 0 and (kind == _FOLDER or kind in _PLAIN)):
                    raise TarFormatError(f"{shortened(name)} in it is no plain file")
            if size < 0 or place + BLOCK + size > length:
                raise TarFormatError(f"{shortened(name)} in it goes on behind its end")
            if is_extension:
                if size > LARGEST_EXTENSION:
                    raise TarFormatError(f"a header in it has {size} bytes, expected at most {LARGEST_EXTENSION}")
                long_names.add(kind, self._read(place + BLOCK, size))
            place = behind
        self.end = place

    def has_data_behind(self) -> bool:
        """Return whether anything but zeros follows the end mark. Call it when all entries have been seen."""
        assert self.end is not None
        self.file.seek(self.end)
        while data := self.file.read(LOOK_AT_ONCE):
            if data.count(0) != len(data):
                return True
        return False

    def _read(self, place: int, count: int) -> bytes:
        self.file.seek(place)
        return self.file.read(count)


class _LongNames:
    """The names that extended headers give to the next entry: each kind of header once, as archivers write them."""

    def __init__(self) -> None:
        self._names: dict[bytes, str | None] = {}

    def add(self, kind: bytes, data: bytes) -> None:
        """Read an extended header."""
        if kind in self._names:
            raise TarFormatError("two extended headers in it belong to one entry")
        if kind in {_PAX, _PAX_OF_ALL}:
            name = _path_of_pax(data, of_all=kind == _PAX_OF_ALL)
        else:
            name = _text(data) if kind == _LONG_NAME else None
        if kind != _PAX_OF_ALL:
            self._names[kind] = name

    def take(self, name: str) -> str:
        """The name of the entry that follows, in the place of the one in its own header."""
        named = self._names.get(_PAX) or self._names.get(_LONG_NAME) or name
        self._names.clear()
        if not named:
            raise TarFormatError("an entry in it has no name")
        return named


def _fields(header: bytes) -> tuple[str, int, bytes]:
    """Return the name, size and kind of an entry."""
    mark = header[257:265]
    # The checksum is made with its own field as spaces.
    if _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise TarFormatError("a header in it has a checksum that does not fit")
    if mark not in {_POSIX, _GNU}:
        raise TarFormatError("a header in it is not POSIX's")
    prefix = _text(header[345:500])
    if mark == _GNU and prefix:
        raise TarFormatError("a header in it has fields that only GNU tar knows")
    name = _text(header[:100])
    return f"{prefix}/{name}" if prefix else name, _size(header[124:136]), header[156:157]


def _size(field: bytes) -> int:
    """Return the size of an entry: octal, or GNU's binary number, which may be negative."""
    if field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0o377:
        return int.from_bytes(field, "big", signed=True)
    return _octal(field)


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits or not all(byte in b"01234567" for byte in digits):
        raise TarFormatError("a header in it holds no number where one belongs")
    return int(digits, 8)


def _path_of_pax(data: bytes, *, of_all: bool) -> str | None:
    """Return the record `path` of a pax header, if there is one. Other records are ignored."""
    path, place = None, 0
    while place < len(data):
        digits, space, _ = data[place : place + _MOST_DIGITS + 1].partition(b" ")
        if not space or not digits.isdigit() or not int(digits) > len(digits) + 1 or place + int(digits) > len(data):
            raise TarFormatError("a pax header in it is broken")
        record = data[place + len(digits) + 1 : place + int(digits)]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise TarFormatError("a pax header in it is broken")
        if key == b"size" or key.startswith(b"GNU.sparse") or (of_all and key == b"path"):
            raise TarFormatError(f"a pax header in it sets {key.decode('ascii', 'replace')[:40]}, which no image needs")
        if key == b"path":
            path = _text(value[:-1])
        place += int(digits)
    return path


def _text(field: bytes) -> str:
    """Text up to the first NUL; bytes that are no UTF-8 as the file system has them."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def shortened(name: str) -> str:
    """A name for a message, in quotes: at most 80 characters of it, none that a terminal obeys."""
    return repr(name[:80])


def member_bytes(data: bytes, *names: str) -> list[bytes | None]:
    """The contents of files in a small tar, by the last part of their names; None where one is missing.

    Raises:
        TarFormatError: see `TarHeaders`.
    """
    members = {member.name.rpartition("/")[2]: member for member in TarHeaders(io.BytesIO(data), extended=True) if member.plain}
    return [data[members[name].offset :][: members[name].size] if name in members else None for name in names]
