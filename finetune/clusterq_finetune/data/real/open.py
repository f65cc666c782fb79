"""Recognise the layout of a place with real images."""

from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import Geometry, InputSpec
from clusterq_finetune.data.layouts import LAYOUTS
from clusterq_finetune.data.pixels import PixelRange
from clusterq_finetune.data.real.base import ValidationImages
from clusterq_finetune.data.real.cifar import cifar_batch, open_cifar
from clusterq_finetune.data.real.files import kaggle_solution, open_class_folders, open_kaggle
from clusterq_finetune.data.real.own import is_own, open_own
from clusterq_finetune.data.real.tars import open_imagenet_tar, open_webdataset

IMAGENET_TAR = "ILSVRC2012_img_val.tar"


def open_validation(
    path: Path,
    spec: InputSpec,
    *,
    classes: Path | None = None,
    geometry: Geometry | None = None,
    pixel_range: PixelRange | None = None,
    own: bool = False,
) -> ValidationImages:
    """List the images of a place in any known layout, without decoding them.

    Args:
        path: a folder or a file; see `LAYOUTS`. With `own` also a dataset of the user's, or a function that returns one, `path/to/file.py:name`.
        spec: what the teacher takes.
        classes: file with one class folder name a line in index order, for class folders whose order cannot be known.
        geometry: how images are resized and cropped; if left out, as is usual for the teacher's size.
        pixel_range: the values that are black and white in images of more than eight bits; if left out, by their depth.
        own: whether the path may name code, which then runs. True for what a person typed, never for what a file says.

    Raises:
        ClusterqError: nothing there, no known layout, labels that do not fit the teacher, or images that need a pixel range.
    """
    if own and is_own(path):
        if classes is not None:
            raise ClusterqError(
                f"{path.name} gives labels itself, expected a place with class folders; leave {setting_name('classes')} out.",
                setting="classes",
            )
        images: ValidationImages = open_own(path, spec)
    else:
        images = _open(path, spec, classes)
    images.pixel_range = pixel_range
    if geometry is not None:
        images.geometry = geometry
    images.probe()
    return images


def _open(path: Path, spec: InputSpec, classes: Path | None) -> ValidationImages:
    if path.is_file():
        if path.name == IMAGENET_TAR:
            return open_imagenet_tar(path, spec)
        if path.suffix.lower() == ".tar":
            return open_webdataset(path, [path], spec)
        if (batch := cifar_batch(path)) is not None:
            return open_cifar(batch, spec)
        raise ClusterqError(f"{path} is a file of no known kind, expected {LAYOUTS}; name one of these.", setting="val")
    if not path.is_dir():
        raise ClusterqError(f"{path} is no folder, expected {LAYOUTS}; check the path.", setting="val")
    if (path / IMAGENET_TAR).is_file():
        return open_imagenet_tar(path / IMAGENET_TAR, spec)
    if (batch := cifar_batch(path)) is not None:
        return open_cifar(batch, spec)
    if any(path.glob("ILSVRC2012_val_*")) and (solution := kaggle_solution(path)) is not None:
        return open_kaggle(path, solution, spec)
    tars = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == ".tar")
    if tars:
        return open_webdataset(path, tars, spec)
    return open_class_folders(path, spec, classes)
