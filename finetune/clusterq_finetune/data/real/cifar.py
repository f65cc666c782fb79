"""CIFAR-10 and CIFAR-100 as their authors ship them: pickled batches, read without running anything in them."""

import io
import operator
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.real.base import ValidationImages

# Test batch and the entry of its labels, by the number of classes.
BATCHES = {10: ("test_batch", b"labels"), 100: ("test", b"fine_labels")}
PIXELS = 3 * 32 * 32
# The real ones have 31 MB, and remember some twenty thousand values.
LARGEST_BATCH = 256 << 20
MOST_REMEMBERED = 1 << 20


class CifarBatch(ValidationImages):
    """Images of one batch in memory, (N, 32, 32, 3) uint8."""

    def __init__(self, root: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]], labels: list[int], spec: InputSpec) -> None:
        super().__init__(root, "CIFAR's python batches", labels, spec)
        self.pixels = pixels

    def name(self, index: int) -> str:
        return f"{self.root.name} #{index}"

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


def cifar_batch(path: Path) -> Path | None:
    """Return the test batch at a path: a file of that name, or one in such a folder."""
    names = {name for name, _ in BATCHES.values()}
    if path.is_file():
        return path if path.name in names else None
    # A plain folder called `test` is somebody's class folders: only a file counts.
    return next((path / name for name in sorted(names) if (path / name).is_file()), None)


def open_cifar(batch: Path, spec: InputSpec) -> CifarBatch:
    """Open the test images of CIFAR-10 or CIFAR-100.

    Raises:
        ClusterqError: a teacher of another number of classes, or a file that is no such batch.
    """
    if spec.num_classes not in BATCHES:
        raise ClusterqError(
            f"{batch} is a batch of CIFAR, the teacher has {spec.num_classes} classes; pass images of its own.", setting="val"
        )
    _, labels_key = BATCHES[spec.num_classes]
    try:
        if batch.stat().st_size > LARGEST_BATCH:
            raise pickle.UnpicklingError(f"it has more than {LARGEST_BATCH} bytes")
        data = batch.read_bytes()
        _refuse_far_places(data)
        values = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        pixels = np.asarray(values[b"data"])
        labels = [operator.index(label) for label in values[labels_key]]
    except Exception as error:  # a broken pickle raises anything
        raise ClusterqError(
            f"{batch} is no test batch of CIFAR-{spec.num_classes} ({type(error).__name__}: {error}), expected one of its python "
            "version; get it again.",
            setting="val",
        ) from error
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS) or not all(0 <= x < spec.num_classes for x in labels):
        raise ClusterqError(
            f"{batch} holds {pixels.dtype} {pixels.shape}, expected uint8 (images, {PIXELS}); get it again.", setting="val"
        )
    return CifarBatch(batch, pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), labels, spec)


def _refuse_far_places(data: bytes) -> None:
    """Refuse high memo numbers in a pickle: a single one would make Python reserve all memory below it."""
    if any("PUT" in code.name and int(place or 0) > MOST_REMEMBERED for code, place, _ in pickletools.genops(data)):
        raise pickle.UnpicklingError(f"it remembers a value at a place above {MOST_REMEMBERED}")


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler that knows only the three names of a pickled array, so that no foreign code can be called."""

    def find_class(self, module: str, name: str) -> Any:
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct":
            return _reconstruct
        if module == "numpy" and name == "ndarray":
            return np.ndarray
        if module == "numpy" and name == "dtype":
            return _dtype
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray[Any, np.dtype[Any]]:
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise pickle.UnpicklingError("an array is built in an unknown way")
    return np.ndarray.__new__(np.ndarray, (0,), dtype=code.decode() if isinstance(code, bytes) else code)


def _dtype(name: object, *rest: object) -> np.dtype[Any]:
    text = name.decode() if isinstance(name, bytes) else name
    if text != "u1":
        raise pickle.UnpicklingError(f"it holds an array of {text!r}")
    # A copy: what the pickle says next is done to it.
    return np.dtype("u1", copy=True)
