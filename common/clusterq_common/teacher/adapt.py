"""Other people's classifiers as clusterq needs them: plain float32 weights, logits as the output, a memory order that works."""

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from clusterq_common.device.setup import CONTIGUOUS, set_memory_format
from clusterq_common.errors import ClusterqError, describe_error
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.pooling import last_pooling_over_all
from clusterq_common.teacher.spec import InputSpec

# torch (up to 2.13) corrupts its heap in strided 1x1 convolutions of so few channels on channels_last inputs.
FEW_CHANNELS = 7
FOLD_TOLERANCE = 1e-3
NAMES_SHOWN = 3


class Remark(NamedTuple):
    """A change to a classifier in words, and whether it rests on a guess."""

    text: str
    guess: bool = False


def adapt(model: nn.Module, spec: InputSpec, arch: str) -> list[Remark]:
    """Change a classifier in place until it takes (N, C, H, W) float32 and returns logits (N, classes).

    Does what is needed of: float32 weights, weight norm and other parametrizations folded, contiguous memory where channels_last fails,
    logits taken out of a dict, a tuple, a data class, (N, classes, 1, 1), or a single logit for two classes, and a last pooling that
    takes images of other sizes.

    Returns:
        A sentence for each change.

    Raises:
        ClusterqError: the model does not run on such an image, or its output holds no logits.
    """
    remarks: list[Remark] = []
    narrow = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()} - {"float32"}
    if narrow:
        model.float()
        remarks.append(Remark(f"weights in {', '.join(sorted(narrow))} are computed with in float32"))
    folded = _fold(model, spec, arch)
    if folded:
        more = f" and {len(folded) - NAMES_SHOWN} more" if len(folded) > NAMES_SHOWN else ""
        remarks.append(Remark(f"parametrized weights are folded: {', '.join(folded[:NAMES_SHOWN])}{more}"))
    take, how, pooling = _answer(model, spec, arch)
    if pooling:
        remarks.append(Remark(pooling, guess=True))
    contiguous = _needs_contiguous(model, spec)
    if contiguous:
        remarks.append(Remark(f"memory stays contiguous: {contiguous}"))
    if how:
        remarks.append(Remark(how, guess=True))
    if take is not None or contiguous:
        _override_forward(model, take, contiguous=bool(contiguous))
    return remarks


def _answer(model: nn.Module, spec: InputSpec, arch: str) -> tuple[Callable[[Any], Tensor] | None, str, str]:
    """`_logits_of` a model's output, and how its last pooling had to be changed for that; empty where it did not."""
    try:
        return *_logits_of(_run(model, spec, arch), spec, arch), ""
    except ClusterqError:
        # If that does not help either, the first error is the one that says why.
        with suppress(ClusterqError), last_pooling_over_all(model) as changed:
            if changed:
                return *_logits_of(_run(model, spec, arch), spec, arch), changed
        raise


def _run(model: nn.Module, spec: InputSpec, arch: str) -> Any:
    """The raw output for one black image."""
    image = spec.example()
    parameter = next(model.parameters(), None)
    try:
        with torch.no_grad():
            return model(image if parameter is None else image.to(parameter.device))
    except Exception as error:  # any model, any failure
        reason = describe_error(error).split("\n")[0]
        advice = f"check {setting_name('input_size')} and {setting_name('in_channels')}"
        if isinstance(error, TypeError) and "required positional argument" in reason:
            advice = "let the factory return a module whose forward takes the images alone and gives the other arguments itself"
        raise ClusterqError(
            f"{arch} cannot run on a {spec.channels}x{spec.shown_size} image ({reason}); {advice}.", setting="arch"
        ) from error


def _fold(model: nn.Module, spec: InputSpec, arch: str) -> list[str]:
    """Replace parametrized weights by their values: weight and spectral norm of both styles, pruning, any other parametrization."""
    folders: list[tuple[str, Callable[[], object]]] = []
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            folders += [(f"{name}.{tensor}", partial(_unparametrize, module, tensor)) for tensor in module.parametrizations]
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                folders.append((f"{name}.{hook.name}", partial(nn.utils.remove_weight_norm, module, hook.name)))
            elif isinstance(hook, SpectralNorm):
                folders.append((f"{name}.{hook.name}", partial(nn.utils.remove_spectral_norm, module, hook.name)))
            elif isinstance(hook, prune.BasePruningMethod):
                folders.append((f"{name}.{hook._tensor_name}", partial(prune.remove, module, hook._tensor_name)))
    if not folders:
        return []
    random = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    images = torch.randn(2, *spec.shape, generator=random).to(device)
    with torch.no_grad():
        before = _tensors(model(images))
        for _, fold in folders:
            fold()
        after = _tensors(model(images))
    for mine, other in zip(before, after, strict=True):
        if not torch.allclose(mine, other, rtol=FOLD_TOLERANCE, atol=FOLD_TOLERANCE * float(mine.abs().max())):
            raise ClusterqError(
                f"{arch} answers otherwise once its parametrized weights are folded ({folders[0][0]} and others), expected the same; "
                "fold them in the model and save it again.",
                setting="arch",
            )
    return [name for name, _ in folders]


def _unparametrize(module: nn.Module, name: str) -> None:
    parametrize.remove_parametrizations(module, name)
    value = getattr(module, name)
    if name not in module._parameters:  # torch leaves a plain tensor where several made one and none wants a gradient
        delattr(module, name)
        module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))


def _tensors(output: Any) -> list[Tensor]:
    return [part for part in _fields(output).values() if isinstance(part, Tensor)]


def _fields(output: Any) -> dict[str, Any]:
    """The parts of a structured output by name; a tensor is one nameless part."""
    if isinstance(output, Tensor):
        return {"": output}
    if isinstance(output, dict):
        return {str(name): value for name, value in output.items()}
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    if isinstance(output, tuple | list):
        return {str(number): value for number, value in enumerate(output)}
    if dataclasses.is_dataclass(output):
        return {part.name: getattr(output, part.name) for part in dataclasses.fields(output)}
    return {}


def _logits_of(output: Any, spec: InputSpec, arch: str) -> tuple[Callable[[Any], Tensor] | None, str]:
    """Find the logits in a model's output for one image. Returns how to take them (None: the output is the logits), and a sentence.

    Raises:
        ClusterqError: there are none of the right shape, several, or integers.
    """
    fields = {name: value for name, value in _fields(output).items() if isinstance(value, Tensor)}
    fitting = [name for name, value in fields.items() if _shape_of(value, spec)]
    if "logits" in fitting:
        fitting = ["logits"]
    if len(fitting) == 1 and not fields[fitting[0]].is_floating_point():
        kind = str(fields[fitting[0]].dtype).removeprefix("torch.")
        raise ClusterqError(
            f"{arch} gives {kind} numbers, expected logits in floating point, which gradients pass; return what these are made from.",
            setting="arch",
        )
    if len(fitting) != 1:
        described = (
            ", ".join(f"{name or 'output'} {tuple(value.shape)}" for name, value in fields.items()) or type(output).__name__
        )
        several = f", {len(fitting)} of them of that shape" if fitting else ""
        raise ClusterqError(
            f"{arch} gives {described} for one image, expected logits of shape (1, {spec.num_classes}){several}; check {setting_name('num_classes')}, or "
            "return the logits alone.",
            setting="arch",
        )
    name = fitting[0]
    shape = _shape_of(fields[name], spec)
    if not name and shape == "rows":
        return None, ""
    where = f"logits are taken from the output's part {name!r}" if name else "logits are taken from the output"
    if shape == "maps":
        where += f", flattened from {tuple(fields[name].shape)}"
    if shape == "single":
        where += ", one number for two classes: class 0 gets the logit 0, class 1 this number"
    structured = bool(name)

    def take(given: Any) -> Tensor:
        logits = _fields(given)[name] if structured else given
        if shape == "maps":
            return logits.flatten(1)
        if shape == "single":
            logits = logits.flatten()[:, None]
            return torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits

    return take, where


def _shape_of(value: Tensor, spec: InputSpec) -> str:
    """Name the form in which one image's tensor holds logits: `rows`, `maps`, `single`, or empty for none."""
    shape = tuple(value.shape)
    if shape == (1, spec.num_classes):
        return "rows"
    if shape == (1, spec.num_classes, 1, 1):
        return "maps"
    return "single" if spec.num_classes == 2 and shape in {(1, 1), (1,), (1, 1, 1, 1)} else ""


def _needs_contiguous(model: nn.Module, spec: InputSpec) -> str:
    """Say why channels_last memory does not suit a model; empty where it does."""
    for name, layer in model.named_modules():
        if (
            isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (1, 1)
            and max(layer.stride) > 1
            and layer.in_channels <= FEW_CHANNELS
        ):
            return f"torch's strided 1x1 convolutions on {layer.in_channels} channels, as {name}, fail in channels_last order"
    device = next(model.parameters()).device
    images = torch.randn(2, *spec.shape, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.no_grad():
            set_memory_format(model, torch.channels_last)
            model(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        return f"its forward fails in channels_last order ({type(error).__name__})"
    finally:
        set_memory_format(model, torch.contiguous_format)
    return ""


def _override_forward(model: nn.Module, take: Callable[[Any], Tensor] | None, *, contiguous: bool) -> None:
    """Give the model itself another forward. A wrapper around it would change all names in its state dict."""
    kind = type(model)

    def forward(self: nn.Module, images: Tensor) -> Tensor:
        output = kind.forward(self, images.contiguous() if contiguous else images)
        return output if take is None else take(output)

    about = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__, CONTIGUOUS: contiguous}
    model.__class__ = type(kind.__name__, (kind,), about)
