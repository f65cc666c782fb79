"""What is known about pytorchcv's classifiers: their names, their images, their normalisation."""

import difflib
import inspect
from typing import Any

from torch import nn

from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.teacher.spec import TeacherConfig

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
# Suffixes of other data sets than ImageNet. None: classifiers whose normalisation the user has to give.
STATISTICS_BY_SUFFIX = {"cifar10": CIFAR_STATISTICS, "cifar100": CIFAR_STATISTICS, "svhn": None, "cub": None}
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
        raise ClusterqError(f"--arch: {config.arch!r} is no pytorchcv model, nor a path/to/file.py:factory; {offer}")
    model = _construct(name, _models[name], config)
    suffix = name.rsplit("_", 1)[-1]
    statistics = STATISTICS_BY_SUFFIX.get(suffix, IMAGENET_STATISTICS if getattr(model, "num_classes", None) == 1000 else None)
    size = getattr(model, "in_size", None)
    return model, {
        "input_size": size[0] if isinstance(size, tuple | list) else size,
        "in_channels": config.in_channels or 3,
        "num_classes": getattr(model, "num_classes", None),
        "mean": statistics[0] if statistics else None,
        "std": statistics[1] if statistics else None,
    }


def _construct(name: str, constructor: Any, config: TeacherConfig) -> nn.Module:
    wanted = {
        "num_classes": config.num_classes,
        "in_channels": config.in_channels,
        "in_size": None if config.input_size is None else (config.input_size, config.input_size),
    }
    given = {key: value for key, value in wanted.items() if value is not None}
    parameters = inspect.signature(constructor).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    try:
        model: nn.Module = constructor(**(given if takes_any else {k: v for k, v in given.items() if k in parameters}))
    except (TypeError, ValueError, AssertionError) as error:
        flags = ", ".join(f"--{flag}" for flag in ("input-size", "in-channels", "num-classes"))
        raise ClusterqError(
            f"--arch: pytorchcv's {name} cannot be built with these sizes ({error}); leave out {flags}."
        ) from error
    return model
