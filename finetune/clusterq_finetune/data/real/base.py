"""Common interface of all layouts: images by index, decoded and preprocessed when a loader requests them."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from clusterq_common.device.distributed import Ranks
from clusterq_common.errors import ClusterqError
from clusterq_common.escape import encodable
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.pixels import PixelRange, eight_bits, is_deep
from clusterq_finetune.data.preprocess import preprocess
from clusterq_finetune.data.real.remarks import Remark

# What may be remarked of a single image.
FRAMES = "several frames, the first is taken"
TURNED = "a rotation in EXIF, not applied (as in torchvision)"
ORIENTATION = 0x0112
# Pixels of an image, as it lies in its file: decoding takes a dozen bytes for each.
LARGEST_IMAGE = 1 << 26
# The longest side that a JPEG can have.
LONGEST_SIDE = 2**16 - 1
# Images looked at before anything is decoded: enough to find a folder of floats before a training that ends with its evaluation.
PROBED = 16


class Sample(NamedTuple):
    """One image as read.

    Attributes:
        pixels: (C, H, W) uint8; None for one that cannot be decoded.
        label: its class.
        name: what a person would find it by.
        mode: PIL's mode of the file's pixels, as "RGB" or "I;16"; empty for one that cannot be decoded.
        remarks: what there is to say of it.
        refused: the sentence that ends the reading: the image cannot be understood without a setting.
    """

    pixels: Tensor | None
    label: int
    name: str
    mode: str = ""
    remarks: tuple[str, ...] = ()
    refused: str = ""


class ValidationBatch(NamedTuple):
    """pixels (N, C, H, W) uint8, labels (N,) int64 and names of N images, and the names of those that could not be read.

    `modes` are the N images' pixel modes, `remarks` pairs of what is remarked and an image's name. `refused` is the sentence that ends
    the reading, if there is one.
    """

    pixels: Tensor
    labels: Tensor
    names: list[str]
    unreadable: list[str]
    modes: list[str]
    remarks: list[tuple[str, str]]
    refused: str = ""


class ValidationImages(Dataset[tuple[Tensor | None, int, str]], ABC):
    """Images and labels by index, in an order that depends on names alone.

    Args:
        root: where they come from, for errors.
        layout: what kind of place that is, in words.
        labels: class index of each image.
        spec: what the teacher takes.

    Attributes:
        geometry: how they are resized and cropped; unless it is set, as is usual for images of the teacher's size.
        pixel_range: the values that are black and white in images of more than eight bits; by their depth unless it is set.
        remarks: what was skipped, reordered or guessed when the place was listed.
        class_names: in index order, where the place has names for classes.
    """

    def __init__(self, root: Path, layout: str, labels: list[int], spec: InputSpec) -> None:
        self.root = root
        self.layout = layout
        self.labels = labels
        self.spec = spec
        self.geometry = known_geometry(spec.size)
        self.pixel_range: PixelRange | None = None
        self.remarks: list[Remark] = []
        self.class_names: list[str] = []

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name by which a person finds the image."""

    @abstractmethod
    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """Open the image with PIL, decoded or not, for as long as the block runs.

        Raises:
            OSError, SyntaxError, ValueError: it cannot be read.
        """

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str]:
        """Return pixels (C, H, W) uint8, or None for an image that cannot be decoded; label; name.

        Raises:
            ClusterqError: an image that cannot be understood without a setting.
        """
        sample = self.sample(index)
        if sample.refused:
            raise ClusterqError(sample.refused)
        return sample.pixels, sample.label, sample.name

    def sample(self, index: int) -> Sample:
        """Return the image and the remarks on it."""
        # Names go into results, which hold Unicode alone; file systems hold any bytes.
        label, name = self.labels[index], encodable(self.name(index), "utf-8")
        try:
            with self.open(index) as image:
                return self._read(image, label, name)
        except ClusterqError as error:
            return Sample(None, label, name, refused=str(error))
        except Exception:  # a decoder may raise anything on a broken file
            # Reported, not swallowed: the result counts and names every image that could not be read.
            return Sample(None, label, name)

    def _read(self, image: Image.Image, label: int, name: str) -> Sample:
        """Decode and preprocess an open image.

        Raises:
            ValueError: it is far larger than any photograph.
        """
        mode = image.mode
        if image.width * image.height > LARGEST_IMAGE or max(image.size) > LONGEST_SIDE:
            raise ValueError(f"it is {image.width}x{image.height}")
        shallow, outside, narrow = eight_bits(image, self.pixel_range, name)
        pixels = preprocess(shallow, self.spec, self.geometry)
        remarks = (
            *((f"values outside {setting_name('pixel_range')}, clipped",) if outside else ()),
            *((_narrow(),) if narrow else ()),
            *_remarks_of(image),
        )
        return Sample(pixels, label, name, mode, remarks)

    def probe(self) -> None:
        """Read the headers of a few images, so that an image that needs a setting is refused at once.

        Raises:
            ClusterqError: such an image.
        """
        if self.pixel_range is not None:
            return
        for index in range(0, len(self), max(1, len(self) // PROBED)):
            try:
                with self.open(index) as image:
                    deep = is_deep(image)
            except Exception:  # as in `sample`, which counts and names it
                continue
            if deep and (refused := self.sample(index).refused):
                raise ClusterqError(refused)

    def chosen(self, wants: Callable[[int, int], bool]) -> Iterator[Sample]:
        """Read some of the images, in their order.

        Args:
            wants: says of a number and a label whether that image is to be read; called once for each image, when its turn comes.

        Raises:
            ClusterqError: labels that cannot be read.
        """
        for index, label in enumerate(self.labels):
            if wants(index, label):
                yield self.sample(index)

    def numbered_labels(self) -> dict[int, int]:
        """Return the label of each image by its number.

        Raises:
            ClusterqError: labels that cannot be read.
        """
        labels: dict[int, int] = {}

        def note(index: int, label: int) -> bool:
            labels[index] = label
            return False

        for _ in self.chosen(note):
            pass
        return labels

    def samples(self) -> "Samples":
        """Return the same images with the remarks on each."""
        return Samples(self)

    def batches(self, batch_size: int, workers: int, ranks: Ranks) -> Iterator[ValidationBatch]:
        """Yield this process's share of the images: every world-th one, so that each is counted once."""
        own = range(ranks.rank, len(self), ranks.world)
        yield from DataLoader(self.samples(), batch_size=batch_size, sampler=own, num_workers=workers, collate_fn=self.collate)

    def collate(self, samples: Sequence[Sample]) -> ValidationBatch:
        """Combine a loader's samples into one batch, unreadable ones apart.

        Raises:
            ClusterqError: outside a loader's processes, whose errors would arrive as tracebacks: see `ValidationBatch.refused`.
        """
        refused = next((sample.refused for sample in samples if sample.refused), "")
        if refused and get_worker_info() is None:
            raise ClusterqError(refused)
        good = [(sample.pixels, sample) for sample in samples if sample.pixels is not None]
        batch = torch.empty(len(good), *self.spec.shape, dtype=torch.uint8)
        if get_worker_info() is not None:
            # Where it must lie to be sent. Sending it would otherwise free it from another thread, at any time: the images decoded
            # meanwhile settle in the hole, and the process grows by hundreds of megabytes.
            batch.share_memory_()
        if good:
            torch.stack([pixels for pixels, _ in good], out=batch)
        return ValidationBatch(
            batch,
            torch.tensor([sample.label for _, sample in good], dtype=torch.long),
            [sample.name for _, sample in good],
            [sample.name for sample in samples if sample.pixels is None],
            [sample.mode for _, sample in good],
            [(what, sample.name) for _, sample in good for what in sample.remarks],
            refused,
        )


def _remarks_of(image: Image.Image) -> Iterator[str]:
    """Remarks on a decoded file that its first picture's pixels do not show."""
    # Pillow raises anything on broken metadata, which says nothing about the pixels.
    with suppress(Exception):
        if getattr(image, "is_animated", False):
            yield FRAMES
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if image.getexif().get(ORIENTATION, 1) != 1:
            yield TURNED


class Samples(Dataset[Sample]):
    """A set's images by index, each with its remarks."""

    def __init__(self, images: ValidationImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self.images.sample(index)


def _narrow() -> str:
    return (
        f"16 bits with no value above 4095, taken as nearly black (12 bits in 16 need {setting_name('pixel_range', '0,4095')})"
    )
