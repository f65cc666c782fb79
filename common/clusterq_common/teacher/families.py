"""Facts about pytorchcv's classifiers: names, images, normalisation, and the preprocessing of their evaluation."""

import difflib
import inspect
import re
from typing import Any

from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.size import SMALL_SIDE, Size, sides
from clusterq_common.teacher.spec import Geometry, TeacherConfig

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
HALF_STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Suffixes of other data sets than ImageNet, as pytorchcv's author evaluates them (github.com/osmr/imgclsmob, pytorch/datasets/:
# SVHN with CIFAR's transforms, CUB-200-2011 with ImageNet's).
STATISTICS_BY_SUFFIX = {
    "cifar10": CIFAR_STATISTICS,
    "cifar100": CIFAR_STATISTICS,
    "svhn": CIFAR_STATISTICS,
    "cub": IMAGENET_STATISTICS,
}
# What pytorchcv's evaluation does (osmr/imgclsmob, sotabench.py): a bilinear resize to ceil(size / share), then the centre crop.
CROP_SHARE = 0.875
# The exceptions: column `scale` of its model_store.py.
CROP_SHARES = {
    "efficientnet_b1": 0.882,
    "efficientnet_b2": 0.89,
    "efficientnet_b3": 0.904,
    "efficientnet_b4": 0.922,
    "efficientnet_b5": 0.934,
    "efficientnet_b6": 0.942,
    "efficientnet_b7": 0.949,
    "efficientnet_b8": 0.954,
    "efficientnet_edge_medium": 0.882,
    "efficientnet_edge_large": 0.904,
}
# pytorchcv's README marks these with an asterisk, "non-standard preprocessing": they are timm's tf_efficientnet_*_ap and
# tf_efficientnet_{es,em,el}, which timm evaluates bicubically with mean = std = 0.5 (timm/models/efficientnet.py, default_cfgs).
NON_STANDARD = re.compile(r"efficientnet_(b\dc|edge_(small|medium|large)_b)")
NAMES_OFFERED = 3


def build_pytorchcv(config: TeacherConfig) -> tuple[nn.Module, dict[str, Any]]:
    """A pytorchcv classifier with fresh weights, and what is known of its images: TeacherConfig fields, None where unknown.

    Raises:
        ClusterqError: no such name (the nearest are offered), or sizes that the constructor does not take.
    """
    from pytorchcv.model_provider import _models

    name = config.arch.lower()
    if name not in _models:
        near = difflib.get_close_matches(name, _models, n=NAMES_OFFERED, cutoff=0.5)
        offer = f"did you mean {', '.join(near)}?" if near else "pytorchcv's model list has them all."
        raise ClusterqError(f"{config.arch!r} is no pytorchcv model, nor a path/to/file.py:factory; {offer}", setting="arch")
    model = _construct(name, _models[name], config)
    statistics = _statistics(name, getattr(model, "num_classes", None))
    return model, {
        "input_size": getattr(model, "in_size", None),
        "in_channels": config.in_channels or 3,
        "num_classes": getattr(model, "num_classes", None),
        "mean": statistics[0] if statistics else None,
        "std": statistics[1] if statistics else None,
    }


def known_geometry(size: Size, arch: str = "") -> Geometry:
    """Preprocessing of the published accuracy of an architecture that takes images of `size`.

    For a user's own factory, and where nothing else is known, as is usual: up to 64 pixels the whole image, above a bilinear resize
    and a centre crop of 87.5 %. Published accuracies are about squares alone. For any other size the picture is resized until it
    just covers the image, and what protrudes on two sides is cut off: nothing is distorted, and pictures of that size stay whole.
    """
    if not isinstance(size, int):
        return Geometry(crop_pct=1.0, interpolation="bilinear")
    if size <= SMALL_SIDE:
        return Geometry(crop_pct=None, interpolation="bilinear")
    name = arch.lower()
    # Variants of a family end in a letter: efficientnet_b1c, efficientnet_edge_large_b.
    share = next((share for family, share in CROP_SHARES.items() if re.fullmatch(family + "(_?[a-z])?", name)), CROP_SHARE)
    return Geometry(crop_pct=share, interpolation="bicubic" if NON_STANDARD.fullmatch(name) else "bilinear")


def _statistics(name: str, classes: int | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation; None where the user has to give them: a head for classes of the user's own."""
    suffix = name.rsplit("_", 1)[-1]
    if suffix in STATISTICS_BY_SUFFIX:
        return STATISTICS_BY_SUFFIX[suffix]
    if classes != 1000:
        return None
    return HALF_STATISTICS if NON_STANDARD.fullmatch(name) else IMAGENET_STATISTICS


def _construct(name: str, constructor: Any, config: TeacherConfig) -> nn.Module:
    wanted = {
        "num_classes": config.num_classes,
        "in_channels": config.in_channels,
        "in_size": None if config.input_size is None else sides(config.input_size),
    }
    given = {key: value for key, value in wanted.items() if value is not None}
    parameters = inspect.signature(constructor).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_any:
        given = {key: value for key, value in given.items() if key in parameters}
    try:
        try:
            model: nn.Module = constructor(**given)
        except (AssertionError, TypeError):
            # EfficientNet and NASNet insist on the size they were published for, which their layers do not depend on.
            model = constructor(**{key: value for key, value in given.items() if key != "in_size"})
    except (TypeError, ValueError, AssertionError) as error:
        sizes = ", ".join(setting_name(name) for name in ("input_size", "in_channels", "num_classes"))
        raise ClusterqError(
            f"pytorchcv's {name} cannot be built with these sizes ({error}); leave out {sizes}.", setting="arch"
        ) from error
    return model
