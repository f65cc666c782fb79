"""Loading of a teacher: its architecture and its weights, frozen."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from clusterq_common.device.setup import to_device
from clusterq_common.errors import ClusterqError, describe_error
from clusterq_common.progress.console import info, warn
from clusterq_common.run.seeding import stream
from clusterq_common.setting_names import setting_name
from clusterq_common.taps import batchnorm_layers
from clusterq_common.teacher.adapt import Remark, adapt
from clusterq_common.teacher.checks import check_answers, check_values, untrained_statistics
from clusterq_common.teacher.digest import weights_digest
from clusterq_common.teacher.factory import build_factory
from clusterq_common.teacher.families import build_pytorchcv
from clusterq_common.teacher.spec import RANDOM, InputSpec, TeacherConfig, absolute_factory, for_whole_pixels, is_factory
from clusterq_common.teacher.weights import download_weights, load_weights, read_checkpoint


@dataclass(frozen=True)
class Teacher:
    """A trained classifier, frozen.

    Attributes:
        model: in eval mode, no parameter wants a gradient; (N, C, H, W) float32 -> logits (N, classes).
        config: resolved: sizes filled in, paths absolute.
        spec: the images it takes.
        digest: `sha256:<hex>` of its weights.
    """

    model: nn.Module
    config: TeacherConfig
    spec: InputSpec
    digest: str

    @classmethod
    def of(cls, model: nn.Module, spec: InputSpec) -> "Teacher":
        """A trained network that you hold, frozen in place: in eval mode, no parameter wants a gradient from now on.

        Args:
            model: (N, C, H, W) float32 -> logits (N, classes), with BatchNorm layers that keep running statistics.
            spec: the images it takes.

        Raises:
            ClusterqError: no BatchNorm, or an output that is not (N, classes).

        Examples:
            >>> import torch
            >>> import clusterq as cq
            >>> layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 10)]
            >>> spec = cq.InputSpec(size=8, channels=1, num_classes=10, mean=(0.5,), std=(0.5,))
            >>> teacher = cq.Teacher.of(torch.nn.Sequential(*layers), spec)
            >>> teacher.model(spec.example()).shape, teacher.digest[:7]
            (torch.Size([1, 10]), 'sha256:')
        """
        kind = type(model)
        arch = f"{kind.__module__}:{kind.__qualname__}"  # with its colon someone's own, as a factory is
        model.eval().requires_grad_(False)
        _prepare(model, spec, arch)
        sizes = {"input_size": spec.size, "in_channels": spec.channels, "num_classes": spec.num_classes}
        config = TeacherConfig(arch=arch, mean=spec.mean, std=spec.std, **sizes)
        return cls(model, config, spec, weights_digest(model))


def load_teacher(config: TeacherConfig, *, device: torch.device | str = "cpu") -> Teacher:
    """Build the architecture, load its weights, freeze it.

    Raises:
        ClusterqError: unknown architecture or sizes, weights that cannot be had or do not fit, no BatchNorm, or an output
            that is not (N, classes).
    """
    model, spec = _build(config)
    if config.weights != RANDOM:
        if config.weights is None and is_factory(config.arch):
            raise ClusterqError(
                f"{setting_name('weights')} is missing: a factory's weights cannot be downloaded; pass {setting_name('weights', 'FILE')}."
            )
        path = Path(config.weights) if config.weights is not None else download_weights(config.arch)
        for choice in load_weights(model, read_checkpoint(path), str(path), config.weights_key):
            warn(f"teacher: {choice}")  # a guess, so `quietly` does not hide it
    model.eval().requires_grad_(False)
    for remark in _prepare(model, spec, config.arch):
        (warn if remark.guess else info)(f"teacher: {remark.text}")
    untrained = untrained_statistics(model) if config.weights != RANDOM else []
    if untrained:
        layers = len(batchnorm_layers(model))
        warn(
            f"{len(untrained)} of {layers} BatchNorm layers have the statistics of fresh ones (mean 0, variance 1), as {untrained[0]}: clusterq learns "
            "from these statistics alone, so check that the weights are those of the trained classifier."
        )
    digest = weights_digest(model)
    resolved = config.model_copy(
        update={
            "arch": absolute_factory(config.arch) if is_factory(config.arch) else config.arch,
            "weights": str(Path(config.weights).resolve()) if config.weights not in {None, RANDOM} else config.weights,
            "input_size": spec.size,
            "in_channels": spec.channels,
            "num_classes": spec.num_classes,
            "mean": spec.mean,
            "std": spec.std,
        }
    )
    to_device(model, device)
    return Teacher(model, resolved, spec, digest)


def build_architecture(config: TeacherConfig) -> tuple[nn.Module, InputSpec]:
    """The model with fresh weights (always the same ones), adapted and in eval mode, and its images.

    Raises:
        ClusterqError: see `load_teacher`.
    """
    model, spec = _build(config)
    _prepare(model, spec, config.arch)
    return model, spec


def input_of(config: TeacherConfig) -> InputSpec:
    """Return the images that an architecture takes. The architecture is built, but not checked.

    Raises:
        ClusterqError: unknown architecture or sizes.
    """
    return _build(config)[1]


def _build(config: TeacherConfig) -> tuple[nn.Module, InputSpec]:
    """The model as its author wrote it, so that its own weights fit, and its images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(0, "architecture").initial_seed())
        if is_factory(config.arch):
            model = build_factory(config.arch)
            known: dict[str, Any] = _stated_by(model)
        else:
            model, known = build_pytorchcv(config)
        spec = _resolve_spec(config, known)
        model.eval()
        if any(is_lazy(value) for value in (*model.parameters(), *model.buffers())):
            try:
                model(spec.example())
            except Exception as error:  # the model's own forward runs
                raise ClusterqError(
                    f"{config.arch} has lazy layers and cannot run on a {spec.channels}x{spec.shown_size} image "
                    f"({describe_error(error)}); check {setting_name('input_size')} and {setting_name('in_channels')}.",
                    setting="arch",
                ) from error
    return model, spec


def _stated_by(model: nn.Module) -> dict[str, Any]:
    """Read the sizes that a factory's model states in pytorchcv's attributes."""
    return {"input_size": getattr(model, "in_size", None), "num_classes": getattr(model, "num_classes", None)}


def _resolve_spec(config: TeacherConfig, known: dict[str, Any]) -> InputSpec:
    """Return the input spec: given settings first, then values known for the architecture."""
    values = {name: getattr(config, name) for name in ("input_size", "in_channels", "num_classes", "mean", "std")}
    values = {name: known.get(name) if value is None else value for name, value in values.items()}
    if values["in_channels"] is None and values["mean"] is not None:
        values["in_channels"] = len(values["mean"])
    missing = [setting_name(name) for name, value in values.items() if value is None]
    if missing:
        raise ClusterqError(
            f"{', '.join(missing)} missing: not known for {config.arch}, expected the image size, channels, classes and "
            "normalisation that it was trained with; pass them."
        )
    if values["mean"] and values["std"] and for_whole_pixels(values["mean"], values["std"]):
        found, meant = (
            f"{setting_name('mean', _numbers(mean))} {setting_name('std', _numbers(std))}"
            for mean, std in (
                (values["mean"], values["std"]),
                ([v / 255 for v in values["mean"]], [v / 255 for v in values["std"]]),
            )
        )
        raise ClusterqError(
            f"{found}: found values for pixels in 0..255, expected them for pixels in [0, 1]; divide both by 255: {meant}."
        )
    return InputSpec.validated(
        {
            "size": values["input_size"],
            "channels": values["in_channels"],
            "num_classes": values["num_classes"],
            "mean": values["mean"],
            "std": values["std"],
        }
    )


def _numbers(values: Iterable[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def _prepare(model: nn.Module, spec: InputSpec, arch: str) -> list[Remark]:
    """Adapt a model in place, and refuse what clusterq can do nothing with. Returns a sentence for each change made."""
    if not batchnorm_layers(model):
        raise ClusterqError(
            f"{arch} has no BatchNorm layer with running statistics, expected some: they are all that clusterq "
            "knows of the training data; choose a classifier with BatchNorm.",
            setting="arch",
        )
    check_values(model, arch)
    remarks = adapt(model, spec, arch)
    check_answers(model, spec, arch)
    return remarks
