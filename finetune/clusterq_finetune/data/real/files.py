"""Images in files of their own: class folders, and ImageNet as Kaggle ships it."""

import csv
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import warn
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.real.base import ValidationImages
from clusterq_finetune.data.real.labels import class_index, imagenet_wnids, order_remark
from clusterq_finetune.data.real.opening import open_image
from clusterq_finetune.data.real.remarks import Remark

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
KAGGLE_SOLUTION = "LOC_val_solution.csv"
SKIPPED = "no known image files, skipped"
# Folders with such names hold classes themselves.
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class ImageFiles(ValidationImages):
    """Paths and labels."""

    def __init__(
        self, root: Path, layout: str, paths: list[Path], labels: list[int], spec: InputSpec, remarks: Sequence[Remark] = ()
    ) -> None:
        super().__init__(root, layout, labels, spec)
        self.paths = paths
        self.remarks += remarks

    def name(self, index: int) -> str:
        return str(self.paths[index].relative_to(self.root))

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        return open_image(self.paths[index])


def open_class_folders(path: Path, spec: InputSpec, classes: Path | None) -> ImageFiles:
    """Open a folder with one subfolder of images for each class; `class_index` assigns the classes.

    Raises:
        ClusterqError: no images, images outside class folders, or class folders that do not fit the teacher.
    """
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        loose = sum(_is_image(entry) for entry in path.iterdir())
        raise ClusterqError(
            f"{path} has no subfolders ({loose} loose images), expected one folder of images for each class, or one of the "
            f"layouts that {setting_name('help')} names; sort them so.",
            setting="val",
        )
    if classes is None and {folder.name.lower() for folder in folders} <= SPLITS:
        raise ClusterqError(
            f"the subfolders of {path} are named as splits ({', '.join(folder.name for folder in folders)}), expected one folder of images "
            f"for each class; name one of them, or pass {setting_name('classes', 'FILE')} if they are the classes.",
            setting="val",
        )
    index = class_index([folder.name for folder in folders], f"{path} has", "class folders", spec, classes)
    labelled: list[tuple[Path, int]] = []
    skipped: list[Path] = []
    for folder in folders:
        images, others = _sorted_out(folder, "*")
        labelled += [(image, index[folder.name]) for image in images]
        skipped += others
    if not labelled:
        instead = f" ({len(skipped)} other files, the first is {skipped[0].name})" if skipped else ""
        raise ClusterqError(
            f"no images in the {len(folders)} class folders of {path}{instead}, expected files such as .JPEG or .png; check the path.",
            setting="val",
        )
    hidden = [entry for entry in path.iterdir() if entry.is_dir() and entry not in set(folders)]
    outside = [*path.iterdir(), *(entry for folder in hidden for entry in folder.rglob("*"))]
    remarks = [
        *_remark(SKIPPED, path, skipped),
        *_remark("files outside class folders, skipped", path, sorted(entry for entry in outside if entry.is_file())),
    ]
    if classes is None and (order := order_remark(list(index))) is not None:
        # Said at once, too: whoever meant the other order need not wait for the figures.
        warn(order.line())
        remarks.append(order)
    listed = ImageFiles(
        path, "class folders", [image for image, _ in labelled], [label for _, label in labelled], spec, remarks
    )
    listed.class_names = list(index)
    return listed


def kaggle_solution(path: Path) -> Path | None:
    """Return Kaggle's file of labels for a flat folder of ImageNet's validation images: in it, or above it as in Kaggle's archive."""
    places = [path, *path.resolve().parents[:4]]
    return next((place / KAGGLE_SOLUTION for place in places if (place / KAGGLE_SOLUTION).is_file()), None)


def open_kaggle(path: Path, solution: Path, spec: InputSpec) -> ImageFiles:
    """Open ImageNet's validation images in one flat folder, with `LOC_val_solution.csv` (`ImageId,PredictionString`).

    Raises:
        ClusterqError: another teacher than one of ImageNet's 1000 classes, a broken table, an image without a line in it.
    """
    number = {wnid: label for label, wnid in enumerate(imagenet_wnids(spec))}
    labels_by_id: dict[str, int] = {}
    for line, row in enumerate(_table(solution), start=2):
        wnid = (row.get("PredictionString") or "").partition(" ")[0]
        image = row.get("ImageId")
        if not image or wnid not in number:
            raise ClusterqError(
                f"line {line} of {solution} is no pair of image and wnid, expected ImageId,PredictionString; get it again.",
                setting="val",
            )
        if labels_by_id.setdefault(image, number[wnid]) != number[wnid]:
            raise ClusterqError(
                f"line {line} of {solution} names another class than an earlier line of the same image, expected one; get it again.",
                setting="val",
            )
    paths, others = _sorted_out(path, "ILSVRC2012_val_*")
    if not paths:
        raise ClusterqError(
            f"{path} holds no ILSVRC2012_val_*.JPEG to go with {solution}; point {setting_name('val')} at the images.",
            setting="val",
        )
    unknown = next((image for image in paths if image.stem not in labels_by_id), None)
    if unknown is not None:
        raise ClusterqError(
            f"{solution} has no line for {unknown.name}, expected one for each image; get it again.", setting="val"
        )
    labels = [labels_by_id[image.stem] for image in paths]
    remarks = [
        *_remark(SKIPPED, path, others),
        *_remark(
            f"lines of {KAGGLE_SOLUTION} without an image", path, sorted(labels_by_id.keys() - {path.stem for path in paths})
        ),
    ]
    return ImageFiles(path, "flat folder with Kaggle's labels", paths, labels, spec, remarks)


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _table(path: Path) -> list[dict[str, str | None]]:
    """Return the rows of a CSV file in UTF-8, with or without a byte order mark.

    Raises:
        ClusterqError: it is none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ClusterqError(f"{path} is no CSV file in UTF-8 ({type(error).__name__}); get it again.", setting="val") from error


def _sorted_out(folder: Path, pattern: str) -> tuple[list[Path], list[Path]]:
    """Return the images below a folder, and everything else there but plain folders; both sorted.

    Hidden folders (`.ipynb_checkpoints` holds copies) and links to folders are among everything else; broken links, too.
    """
    images, others = [], []
    for entry in sorted(folder.rglob(pattern)):
        hidden = any(part.startswith(".") for part in entry.relative_to(folder).parts)
        if _is_image(entry) and not hidden:
            images.append(entry)
        elif not entry.is_dir() or entry.is_symlink():
            others.append(entry)
    return images, others


def _remark(what: str, root: Path, about: Sequence[Path | str]) -> list[Remark]:
    """Return a remark, or none for an empty list."""
    names = [str(item.relative_to(root)) if isinstance(item, Path) else item for item in about]
    return [Remark.of(what, names)] if names else []
