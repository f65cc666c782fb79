"""ImageNet's development kit: the validation images' classes, as its own numbers, and the wnids of these numbers."""

import gzip
import io
import zlib
from pathlib import Path

from clusterq_common.archives.tar import TarFormatError, member_bytes
from clusterq_common.errors import ClusterqError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
# Ten times the devkit, unpacked.
LARGEST_DEVKIT = 64 << 20
# Three times the table of synsets, unpacked. Every eight bytes of it may be an array of its own.
LARGEST_META = 4 << 20
# MATLAB's file format 5: a header, then elements of a kind, a size and a content.
MAT_HEADER, MAT_TAG, MAT_PACKED = 128, 8, 15


def read_devkit(folder: Path) -> tuple[str, bytes]:
    """Read the ground truth and meta.mat, from the devkit's archive in a folder or from its unpacked folder.

    Raises:
        ClusterqError: there is none, or it is damaged or far too large.
    """
    archives = sorted(folder.glob("ILSVRC2012_devkit*.tar.gz"))
    if archives:
        truth, meta = _from_archive(archives[0])
        if truth is not None and meta is not None:
            return truth.decode("ascii", "replace"), meta
    for truth_path in sorted(folder.glob(f"**/{GROUND_TRUTH}")):
        meta_path = truth_path.parent / META
        if meta_path.is_file():
            return _small_file(truth_path).decode("ascii", "replace"), _small_file(meta_path)
    raise ClusterqError(
        f"there is no devkit in {folder}, expected ILSVRC2012_devkit_t12.tar.gz beside the images; get it, or sort the images "
        "into class folders.",
        setting="val",
    )


def wnid_of_number(meta: bytes) -> dict[int, str]:
    """Return the wnids of the devkit's class numbers, by its table of synsets (meta.mat).

    Raises:
        ClusterqError: scipy is missing, or the table cannot be read or unpacks to far more than any.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ClusterqError(
            "the devkit's meta.mat is read with scipy, which is not installed; pip install scipy.", setting="val"
        ) from error
    try:
        synsets = loadmat(io.BytesIO(_unpacked(meta)), squeeze_me=True)["synsets"]
        return {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    except Exception as error:  # loadmat raises anything on a broken file
        why = str(error) if isinstance(error, _UnusualError) else type(error).__name__
        raise ClusterqError(f"the devkit's meta.mat cannot be read ({why}); get the devkit again.", setting="val") from error


class _UnusualError(ValueError):
    """Parse error whose message is shown unchanged."""


def _unpacked(meta: bytes) -> bytes:
    """Return the same MATLAB file without compressed elements, which scipy would expand to any size.

    Raises:
        _UnusualError, zlib.error: it is none of format 5, or unpacks to more than `LARGEST_META`.
    """
    if meta[126:128] != b"IM" or meta[124:126] != b"\x00\x01":
        raise _UnusualError("it is no file of MATLAB's format 5 in little-endian order")
    parts, place, room = [meta[:MAT_HEADER]], MAT_HEADER, LARGEST_META
    while place < len(meta):
        kind, size = (int.from_bytes(meta[place + at : place + at + 4], "little") for at in (0, 4))
        whole = meta[place : place + MAT_TAG + size]
        if kind == MAT_PACKED:
            whole = zlib.decompressobj().decompress(whole[MAT_TAG:], room + 1)
        room -= len(whole)
        if room < 0:
            raise _UnusualError(f"it unpacks to more than {LARGEST_META} bytes")
        parts.append(whole)
        place += MAT_TAG + size
    return b"".join(parts)


def _small_file(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(LARGEST_DEVKIT + 1)
    if len(data) > LARGEST_DEVKIT:
        raise ClusterqError(
            f"{path} has more than {LARGEST_DEVKIT} bytes, expected a part of the devkit; get it again.", setting="val"
        )
    return data


def _from_archive(archive: Path) -> list[bytes | None]:
    """Return the ground truth and meta.mat in the devkit's archive; None for a missing one."""
    try:
        with gzip.open(archive) as file:
            data = file.read(LARGEST_DEVKIT + 1)
        if len(data) > LARGEST_DEVKIT:
            raise TarFormatError(f"it unpacks to more than {LARGEST_DEVKIT} bytes")
        return member_bytes(data, GROUND_TRUTH, META)
    except (TarFormatError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ClusterqError(f"{archive} is no readable devkit ({error}); get the devkit again.", setting="val") from error
