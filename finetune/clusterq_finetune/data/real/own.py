"""Real images from a user's own code: DICOM, arrays, databases, and whatever else no layout covers."""

import operator
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from clusterq_common.device.distributed import Ranks
from clusterq_common.errors import ClusterqError, describe_error
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.factory import call_function
from clusterq_common.teacher.spec import InputSpec, shown_arch
from clusterq_finetune.data.real.base import Sample, ValidationBatch, ValidationImages

EXPECTED = "expected path/to/file.py:function, a function without arguments that returns an iterable of (image, label), or such an iterable itself"
IMAGES = "expected a PIL image, or an array (height, width) or (height, width, channels) of uint8, or one (height, width) of other numbers with"
COLOURS = {3, 4}


def is_own(path: Path) -> bool:
    """Return whether `val` names a function or class in a Python file rather than a folder or file of images."""
    file, _, function = str(path).rpartition(":")
    return file.endswith(".py") and function.isidentifier() and not path.exists()


def _is_dataset(value: object) -> bool:
    """Return whether a value holds images, rather than being a function or a class that makes such a value."""
    return not isinstance(value, type) and (hasattr(value, "__iter__") or hasattr(value, "__getitem__"))


def open_own(path: Path, spec: InputSpec) -> "OwnImages":
    """Run a user's file, which only a command line or a caller's own code may name.

    Raises:
        ClusterqError: no such file or function, an exception inside, or what it returns is no iterable.
    """
    return OwnImages(path, spec)


class OwnImages(ValidationImages):
    """Images of a user's dataset, read by index if it has a length and indices, else in order."""

    def __init__(self, path: Path, spec: InputSpec) -> None:
        super().__init__(path, shown_arch(str(path)), [], spec)
        self.items = self._made()
        in_order = isinstance(self.items, IterableDataset)  # which has __getitem__, too, but no use for it
        self.by_index = hasattr(self.items, "__getitem__") and hasattr(self.items, "__len__") and not in_order

    def _made(self) -> Any:
        made = call_function(str(self.root), setting="val", expected=EXPECTED, is_ready=_is_dataset)
        if not _is_dataset(made):
            raise ClusterqError(f"{self.layout} returned {type(made).__name__}; {EXPECTED}.", setting="val")
        return made

    def __len__(self) -> int:
        """Number of images; 0 where it is not known before they are read."""
        return len(self.items) if hasattr(self.items, "__len__") else 0

    def name(self, index: int) -> str:
        # Names sort as numbers do.
        return f"{self.layout} #{index:06}"

    def open(self, index: int) -> Image.Image:
        return self._image(self.items[index][0], index)

    def sample(self, index: int) -> Sample:
        try:
            item = self.items[index]
        except OSError:
            return Sample(None, 0, self.name(index))
        except Exception as error:  # the user's own code may raise anything
            return Sample(None, 0, self.name(index), refused=self._failed(index, error))
        return self._sample(item, index)

    def probe(self) -> None:
        """Read the first image, so that a kind that cannot be used is refused at once."""
        if self.by_index:
            refused = self.sample(0).refused if len(self) else ""
        else:
            with closing(self._in_order(self.items)) as items:
                refused = next((self._sample(item, index).refused for index, item in items), "")
        if refused:
            raise ClusterqError(refused)

    def batches(self, batch_size: int, workers: int, ranks: Ranks) -> Iterator[ValidationBatch]:
        if self.by_index:
            yield from super().batches(batch_size, workers, ranks)
            return
        waiting: list[Sample] = []
        for index, item in self._in_order(self.items):
            if index % ranks.world == ranks.rank:
                waiting.append(self._sample(item, index))
            if len(waiting) == batch_size:
                yield self.collate(waiting)
                waiting = []
        if waiting:
            yield self.collate(waiting)

    def chosen(self, wants: Callable[[int, int], bool]) -> Iterator[Sample]:
        items = self._by_number() if self.by_index else self._in_order(self.items)
        for index, item in items:
            _, given = self._pair(item, index)
            if wants(index, self._label(given, index)):
                yield self._sample(item, index)

    def _by_number(self) -> Iterator[tuple[int, object]]:
        """Yield images with their numbers, without those that cannot be read.

        Raises:
            ClusterqError: the user's code failed.
        """
        for index in range(len(self)):
            try:
                item = self.items[index]
            except OSError:
                continue
            except Exception as error:  # the user's own code may raise anything
                raise ClusterqError(self._failed(index, error)) from error
            yield index, item

    def _in_order(self, items: Iterable[object]) -> Generator[tuple[int, object], None, None]:
        """Yield images with their numbers in order. A dataset that can be read only once is made anew afterwards.

        Raises:
            ClusterqError: the user's code failed.
        """
        index = 0
        iterator = iter(items)
        failed = False
        try:
            while True:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                except Exception as error:  # the user's own code may raise anything
                    failed = True
                    raise ClusterqError(self._failed(index, error)) from error
                yield index, item
                index += 1
        finally:
            if iterator is items and not failed:
                self.items = self._made()

    def _failed(self, index: int, error: Exception) -> str:
        return f"{setting_name('val')}: {self.layout} failed at item {index} with {describe_error(error)}; mend the file and try again."

    def _sample(self, item: Any, index: int) -> Sample:
        name = self.name(index)
        try:
            value, given = self._pair(item, index)
            label = self._label(given, index)
            return self._read(self._image(value, index), label, name)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return Sample(None, 0, name)
        except ClusterqError as error:
            return Sample(None, 0, name, refused=str(error))

    def _pair(self, item: Any, index: int) -> tuple[Any, Any]:
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise ClusterqError(
                f"item {index} of {self.layout} is {type(item).__name__}, expected a pair of image and label; mend the file.",
                setting="val",
            )
        return item[0], item[1]

    def _label(self, value: Any, index: int) -> int:
        try:
            label = operator.index(value)
        except TypeError:
            label = -1
        if not 0 <= label < self.spec.num_classes:
            raise ClusterqError(
                f"item {index} of {self.layout} has the label {value!r}, expected a number from 0 to {self.spec.num_classes - 1}; "
                "mend the file.",
                setting="val",
            )
        return label

    def _image(self, value: Any, index: int) -> Image.Image:
        """Convert what a function gave for an image to a PIL image."""
        if isinstance(value, Image.Image):
            return value
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        if isinstance(array, np.ndarray):
            if array.ndim == 3 and array.shape[2] == 1:
                array = array[:, :, 0]
            if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in COLOURS)):
                return Image.fromarray(np.ascontiguousarray(array))
            # An array does not say how many of its bits are used: 12-bit scans lie in 16. So a range is asked for.
            if array.ndim == 2 and array.dtype.kind in "iuf":
                whole = np.can_cast(array.dtype, np.int32)
                return Image.fromarray(np.ascontiguousarray(array, np.int32 if whole else np.float32))
            shown = f"{array.dtype} {array.shape}"
        else:
            shown = type(value).__name__
        raise ClusterqError(
            f"item {index} of {self.layout} has an image that is {shown}; {IMAGES} {setting_name('pixel_range')}; mend the file.",
            setting="val",
        )
