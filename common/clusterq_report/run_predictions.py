"""predictions.npz of a run, read a piece at a time: it may be a stranger's. Free of torch."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from clusterq_common.archives.zip_directory import directory_size
from clusterq_common.errors import ClusterqError

Ints = np.ndarray[Any, np.dtype[np.int64]]

# Arrays with several values an image. They are many, and no page shows them: they are left where they lie.
PROBABILITIES = ("_top5_classes", "_probabilities")
NAME, LABEL = "name", "label"
# Above what ImageNet's training images need, with seven models.
MOST_IMAGES = 1 << 21
MOST_VALUES = 1 << 24
LONGEST_NAME = 1 << 12
MOST_CLASSES = 1_000_000
# Of the archive's directory, which zipfile reads whole: some hundred arrays.
LARGEST_DIRECTORY = 1 << 16
LONGEST_HEADER = 1 << 12
AT_ONCE = 1 << 20
# Everything that zipfile raises for an archive that is broken or packed in a way that it does not know.
BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)


@dataclass(frozen=True)
class PredictionsFile:
    """A predictions.npz. Its arrays' headers are compared before a value is read.

    Args:
        path: the file.
    """

    path: Path

    def classes(self) -> dict[str, Ints]:
        """Classes by image and model, (N,) int64, `label` among them.

        Raises:
            ClusterqError: it is not what an evaluation writes.
        """
        with self._opened() as (archive, members):
            return {name: _integers(archive, f"{name}.npy") for name in members if name != NAME}

    def names(self) -> Iterator[str]:
        """Names of the images, one after the other.

        Raises:
            ClusterqError: it is not what an evaluation writes.
        """
        with self._opened() as (archive, _), _array(archive, f"{NAME}.npy") as (count, kind, stream):
            for values in _pieces(count, kind, stream):
                if values.view(f"{kind.byteorder}u4").max(initial=0) > 0x10FFFF:
                    raise ValueError("a name holds what is no character")
                yield from values.tolist()

    @contextmanager
    def _opened(self) -> Iterator[tuple[zipfile.ZipFile, list[str]]]:
        """The archive, and the names of its arrays with one value an image."""
        try:
            if directory_size(self.path) > LARGEST_DIRECTORY:
                raise ValueError("it has thousands of arrays")
            with zipfile.ZipFile(self.path) as archive:
                members = [name.removesuffix(".npy") for name in archive.namelist()]
                members = [name for name in members if not name.endswith(PROBABILITIES)]
                _compare(archive, members)
                yield archive, members
        except BROKEN as error:
            raise ClusterqError(
                f"{self.path} is not what an evaluation writes ({error}), expected arrays name and label and one a model; evaluate again."
            ) from error


def _compare(archive: zipfile.ZipFile, members: list[str]) -> None:
    """Raise ValueError unless the arrays are those of an evaluation by their headers."""
    counts: dict[str, int] = {}
    for name in members:
        with _array(archive, f"{name}.npy") as (count, kind, _):
            counts[name] = count
            if kind.kind != ("U" if name == NAME else "i") or kind.itemsize > 4 * LONGEST_NAME:
                raise ValueError(f"its array {name[:20]!r} holds {kind.str}")
    if not {NAME, LABEL} <= counts.keys() or len(set(counts.values())) != 1 or len(counts) != len(members):
        raise ValueError("expected arrays of one length, name and label among them")
    if counts[LABEL] > MOST_IMAGES or counts[LABEL] * len(members) > MOST_VALUES:
        raise ValueError(f"it is about {counts[LABEL]} images, which is more than any evaluation writes")


@contextmanager
def _array(archive: zipfile.ZipFile, member: str) -> Iterator[tuple[int, np.dtype[Any], BinaryIO]]:
    """Length and dtype of an array of one dimension, and its bytes. Raises ValueError for another one."""
    with archive.open(member) as opened:
        stream = cast(BinaryIO, opened)
        start = io.BytesIO(stream.read(LONGEST_HEADER))
        try:
            version = np.lib.format.read_magic(start)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = header(start)
        except Exception as error:  # numpy's header parser lets tokenizer and recursion errors through
            raise ValueError(f"an array's header is broken ({type(error).__name__})") from error
        values = archive.getinfo(member).file_size - start.tell()
        if len(shape) != 1 or kind.kind not in "iU" or not kind.itemsize or shape[0] * kind.itemsize != values:
            raise ValueError(f"an array is {kind.kind}{shape} in {values} bytes")
        stream.seek(start.tell())
        yield shape[0], kind, stream


def _pieces(count: int, kind: np.dtype[Any], stream: BinaryIO) -> Iterator[np.ndarray[Any, Any]]:
    """An array's values, about a megabyte at once."""
    rows = max(1, AT_ONCE // kind.itemsize)
    for start in range(0, count, rows):
        yield np.frombuffer(stream.read(min(rows, count - start) * kind.itemsize), kind)


def _integers(archive: zipfile.ZipFile, member: str) -> Ints:
    """An array of classes."""
    with _array(archive, member) as (count, kind, stream):
        classes = np.empty(count, np.int64)
        place = 0
        for values in _pieces(count, kind, stream):
            if len(values) and not 0 <= values.min() <= values.max() < MOST_CLASSES:
                raise ValueError(f"its array {member[:20]!r} holds numbers that are no classes")
            classes[place : place + len(values)] = values
            place += len(values)
        if place != count:
            raise ValueError(f"its array {member[:20]!r} ends early")
        return classes
