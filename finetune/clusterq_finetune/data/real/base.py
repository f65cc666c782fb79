"""What every layout becomes: images by index, decoded and preprocessed where a loader asks for them."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from clusterq_common.escape import encodable
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.preprocess import preprocess


class ValidationBatch(NamedTuple):
    """pixels (N, C, S, S) uint8, labels (N,) int64 and names of N images, and the names of those that could not be read."""

    pixels: Tensor
    labels: Tensor
    names: list[str]
    unreadable: list[str]


class ValidationImages(Dataset[tuple[Tensor | None, int, str]], ABC):
    """Images and labels by index, in an order that depends on names alone.

    Args:
        root: where they come from, for errors.
        layout: what kind of place that is, in words.
        labels: class index of each image.
        spec: what the teacher takes.

    Attributes:
        geometry: how they are resized and cropped; unless it is set, as is usual for images of the teacher's size.
    """

    def __init__(self, root: Path, layout: str, labels: list[int], spec: InputSpec) -> None:
        self.root = root
        self.layout = layout
        self.labels = labels
        self.spec = spec
        self.geometry = known_geometry(spec.size)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person would find the image by."""

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """The image as PIL gives it, not yet decoded or decoded.

        Raises:
            OSError, SyntaxError, ValueError: it cannot be read.
        """

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str]:
        """Pixels (C, S, S) uint8, or None for an image that cannot be decoded; label; name."""
        # Names go into results, which hold Unicode alone; file systems hold any bytes.
        label, name = self.labels[index], encodable(self.name(index), "utf-8")
        try:
            with self.open(index) as image:
                return preprocess(image, self.spec, self.geometry), label, name
        except Exception:  # a decoder may raise anything on a broken file
            # Reported, not swallowed: the result counts and names every image that could not be read.
            return None, label, name

    def collate(self, samples: list[tuple[Tensor | None, int, str]]) -> ValidationBatch:
        """Samples of a loader as one batch, unreadable ones apart."""
        good = [(pixels, label) for pixels, label, _ in samples if pixels is not None]
        batch = torch.empty(len(good), self.spec.channels, self.spec.size, self.spec.size, dtype=torch.uint8)
        if get_worker_info() is not None:
            # Where it must lie to be sent. Sending it would otherwise free it from another thread, at any time: the images decoded
            # meanwhile settle in the hole, and the process grows by hundreds of megabytes.
            batch.share_memory_()
        if good:
            torch.stack([pixels for pixels, _ in good], out=batch)
        labels = torch.tensor([label for _, label in good], dtype=torch.long)
        names = [name for pixels, _, name in samples if pixels is not None]
        return ValidationBatch(batch, labels, names, [name for pixels, _, name in samples if pixels is None])
