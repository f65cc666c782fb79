"""Real images with labels, in the layouts people keep them in. Only evaluation looks at these."""

import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.preprocess import preprocess

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
WNID = re.compile(r"n\d{8}")
IMAGENET_CLASSES = 1000
NAMES_SHOWN = 3


class ValidationBatch(NamedTuple):
    """pixels (N, C, S, S) uint8, labels (N,) int64, and the names of images that could not be read."""

    pixels: Tensor
    labels: Tensor
    unreadable: list[str]


class ValidationImages(Dataset[tuple[Tensor | None, int, str]]):
    """Images and labels by index, in sorted order; an image that cannot be decoded is given as None with its name."""

    def __init__(self, root: Path, files_and_labels: list[tuple[Path, int]], spec: InputSpec) -> None:
        self.root = root
        self.files_and_labels = files_and_labels
        self.spec = spec

    def __len__(self) -> int:
        return len(self.files_and_labels)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str]:
        path, label = self.files_and_labels[index]
        name = str(path.relative_to(self.root))
        try:
            with Image.open(path) as image:
                return preprocess(image, self.spec), label, name
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            # Reported, not swallowed: the result counts and names every image that could not be read.
            return None, label, name

    def collate(self, samples: list[tuple[Tensor | None, int, str]]) -> ValidationBatch:
        """Samples of a loader as one batch, unreadable ones apart."""
        good = [(pixels, label) for pixels, label, _ in samples if pixels is not None]
        shape = (0, self.spec.channels, self.spec.size, self.spec.size)
        pixels = torch.stack([pixels for pixels, _ in good]) if good else torch.zeros(shape, dtype=torch.uint8)
        labels = torch.tensor([label for _, label in good], dtype=torch.long)
        return ValidationBatch(pixels, labels, [name for pixels_or_none, _, name in samples if pixels_or_none is None])


def open_validation(path: Path, spec: InputSpec, *, classes: Path | None = None) -> ValidationImages:
    """List the images of a folder with one subfolder for each class.

    Subfolders named by wnid (`n01440764`) get ImageNet's index from the full list of 1000, also when classes are missing.
    Others are classes in sorted order, and must then all be there. `classes`, a file with one folder name a line in index
    order, settles it in any other case.

    Raises:
        ClusterqError: no folder, no images, images outside class folders, or class folders that do not fit the teacher.
    """
    if not path.is_dir():
        raise ClusterqError(f"--val: {path} is no folder, expected one with a subfolder of images for each class.")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        loose = sum(_is_image(entry) for entry in path.iterdir())
        raise ClusterqError(
            f"--val: {path} has no subfolders ({loose} loose images), expected one folder of images for each class; sort them so."
        )
    index = _class_index([folder.name for folder in folders], path, spec, classes)
    found = [
        (image, index[folder.name])
        for folder in folders
        for image in sorted(entry for entry in folder.rglob("*") if _is_image(entry))
    ]
    if not found:
        raise ClusterqError(
            f"--val: no images in the {len(folders)} class folders of {path}, expected files such as .JPEG or .png; check the path."
        )
    return ValidationImages(path, found, spec)


def imagenet_wnids() -> list[str]:
    """The 1000 wnids of ImageNet-1k in index order."""
    return (files("clusterq_finetune") / "tables" / "imagenet_wnids.txt").read_text(encoding="ascii").split()


def _class_index(names: list[str], path: Path, spec: InputSpec, classes: Path | None) -> dict[str, int]:
    if classes is not None:
        known = _read_classes(classes, spec)
    elif spec.num_classes == IMAGENET_CLASSES and any(WNID.fullmatch(name) for name in names):
        known = imagenet_wnids()
    elif len(names) == spec.num_classes:
        known = names
    else:
        raise ClusterqError(
            f"--val: {path} has {len(names)} class folders, expected the teacher's {spec.num_classes} classes; pass --classes FILE "
            "with one folder name a line in index order."
        )
    index = {name: number for number, name in enumerate(known)}
    unknown = [name for name in names if name not in index]
    if unknown:
        shown = ", ".join(unknown[:NAMES_SHOWN])
        raise ClusterqError(
            f"--val: {path} has {len(unknown)} class folders that are not in the class list ({shown}), expected names such as "
            f"{known[0]}; rename or remove them, or pass --classes FILE."
        )
    return index


def _read_classes(path: Path, spec: InputSpec) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterqError(f"--classes: {path} cannot be read ({type(error).__name__}); expected one name a line.") from error
    if len(names) != spec.num_classes or len(set(names)) != len(names):
        raise ClusterqError(
            f"--classes: {path} has {len(set(names))} distinct names on {len(names)} lines, expected {spec.num_classes}; one for "
            "each class of the teacher, in index order."
        )
    return names


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
