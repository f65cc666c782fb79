"""Size of a zip archive's directory, known before anything reads it whole."""

import os
import struct
from pathlib import Path

END, END_SIZE = b"PK\5\6", 22
# Of archives above 4 GiB: a larger record, and its place, stand before the end.
PLACE_64, PLACE_64_SIZE, END_64_SIZE = b"PK\6\7", 20, 56
LONGEST_COMMENT = 2**16 - 1


def directory_size(path: Path) -> int:
    """Return the number of bytes of an archive's directory, as its end states; 0 where it is no archive. A member takes 46 and its name.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - LONGEST_COMMENT - END_SIZE - PLACE_64_SIZE - END_64_SIZE))
        tail = file.read()
    end = tail.rfind(END, 0, len(tail) - END_SIZE + len(END))
    if end < 0:
        return 0
    before = end - PLACE_64_SIZE
    if before >= END_64_SIZE and tail.startswith(PLACE_64, before):
        return int(struct.unpack_from("<Q", tail, before - END_64_SIZE + 40)[0])
    return int(struct.unpack_from("<L", tail, end + 12)[0])
