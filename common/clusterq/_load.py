"""Loading of teachers, of students from earlier runs, and of real images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from clusterq._called import Log
from clusterq_common.progress.console import send_messages_to
from clusterq_common.shards.read import ShardSet
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.place import locate
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.load import load_teacher as load
from clusterq_common.teacher.spec import InputSpec, Interpolation, TeacherConfig
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.real import ValidationImages, open_validation
from clusterq_finetune.student import load_student as load_saved


def load_teacher(
    arch: str,
    weights: Path | str | None = None,
    *,
    input_size: int | tuple[int, int] | str | None = None,
    in_channels: int | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
) -> Teacher:
    """A trained classifier by name: pytorchcv's, or the one that a function in a file of yours builds.

    Of a network that you hold already, `Teacher.of(model, spec)` makes one.

    Args:
        arch: pytorchcv's name, as `resnet20_cifar10`, or `path/to/file.py:function`.
        weights: a state dict, safetensors or PyTorch's; pytorchcv's own download if left out; `random`: fresh ones, for trials.
        input_size: of its images in pixels: the side of a square, (height, width), or "64x128"; this and the next four as known for
            the architecture if left out.
        in_channels: of its images.
        num_classes: how many logits it gives.
        mean: of each channel, pixels in [0, 1].
        std: likewise.
        device: where it is put.

    Returns:
        The frozen network as `.model`, its images as `.spec`, and the digest of its weights.

    Raises:
        ClusterqError: unknown architecture or sizes, weights that cannot be had or do not fit, no BatchNorm, or an output that is not
            (N, classes).

    Examples:
        >>> import clusterq as cq
        >>> teacher = cq.load_teacher("resnet20_cifar10", weights="random")
        >>> teacher.model(teacher.spec.example()).shape
        torch.Size([1, 10])
    """
    given = {"input_size": input_size, "in_channels": in_channels, "num_classes": num_classes, "mean": mean, "std": std}
    with send_messages_to():
        config = TeacherConfig.validated({"arch": arch, "weights": None if weights is None else str(weights), **given})
        return load(config, device=device)


def load_student(
    folder: Path | str, *, arch: str | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, InputSpec]:
    """The low-bit network of an earlier run, and the images it takes. The teacher's weights are not needed for it.

    Args:
        folder: of a fine-tuning (`finetune-w4a4` or the like), or of a generator's run: then it is the one trained along with it.
        arch: the architecture; as the folder says if left out, except for a file's function in a folder that you were given.
        device: where it is put.

    Raises:
        ClusterqError: the folder holds no student, one that does not fit its settings, or it names a file's function and was not written by
            a run of yours.
    """
    with send_messages_to():
        student, spec, _ = load_saved(Path(folder), torch.device(device), arch)
        return student, spec


def open_images(
    path: Path | str,
    spec: InputSpec,
    *,
    arch: str = "",
    classes: Path | str | None = None,
    crop_pct: float | Literal["off"] | None = None,
    interpolation: Interpolation | None = None,
    pixel_range: Sequence[float] | None = None,
) -> ValidationImages:
    """Real images with labels, whatever the layout; none is decoded yet.

    Args:
        path: class folders, ImageNet's validation set as a tar or as Kaggle ships it, webdataset tars, CIFAR's batches, or
            `path/to/file.py:name`, a dataset of (image, label) or a function that returns one; the file is run.
        spec: what the network takes.
        arch: pytorchcv's name, where its family has a crop of its own.
        classes: a file with one class folder's name a line in index order, where their sorted order is not it.
        crop_pct: share of the centre crop in the resized image, along the side that fits; "off": the whole image, squeezed into the
            network's size; as known for the architecture if left out.
        interpolation: of that resizing, likewise.
        pixel_range: the values that are black and white in images of more than eight bits; 16 bits are scaled by their depth if left
            out, 32 bits, signed bytes and floats need it.

    Returns:
        A torch data set of (pixels (C, H, W) uint8 or None, label, name).

    Raises:
        ClusterqError: nothing there, no known layout, or labels that do not fit the network.
    """
    with send_messages_to():
        given = {"crop_pct": crop_pct, "interpolation": interpolation, "pixel_range": pixel_range}
        evaluation = EvaluationConfig.validated(given)
        geometry = evaluation.override_with(known_geometry(spec.size, arch))
        names = None if classes is None else Path(classes)
        return open_validation(
            Path(path), spec, classes=names, geometry=geometry, pixel_range=evaluation.black_and_white, own=True
        )


def open_shards(
    place: Path | str,
    *,
    trust: Path | str | None = None,
    require_signed: bool = False,
    max_bytes: str = "50GB",
    log: Log | None = None,
) -> ShardSet:
    """Open a set of shards from a folder or an address, verified.

    A set at an address is fetched into the user's cache first; what is there already is not fetched again.

    Args:
        place: a folder of shards, a run folder, or `hf://datasets/TEAM/NAME[@revision]`, `s3://`, `gs://`, `https://`.
        trust: file of the public keys of makers whose signatures are accepted.
        require_signed: refuse a set that none of them has signed.
        max_bytes: largest set that is fetched.
        log: function that gets a line on who made the set; None: nothing is printed.

    Raises:
        ClusterqError: there is no usable set, it cannot be fetched, a file does not have the digest that the manifest states, or the
            set's signature does not meet the requirements.

    Examples:
        >>> import clusterq as cq
        >>> shards = cq.open_shards("out/")                                  # doctest: +SKIP
        >>> shards = cq.open_shards("hf://datasets/team/set", trust="keys")  # doctest: +SKIP
    """
    with send_messages_to(log):
        rules = SharingConfig.validated({"trust": trust, "require_signed": require_signed, "max_bytes": max_bytes})
        return ShardSet.open(locate(place, rules).folder)
