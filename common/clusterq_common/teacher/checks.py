"""Checks of a classifier at load, before hours of work depend on it."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clusterq_common.errors import ClusterqError
from clusterq_common.taps import batchnorm_layers, negative_variance
from clusterq_common.teacher.spec import InputSpec

IMAGES = 6
# Far above what kernels for other batch sizes round otherwise.
TOLERANCE = 1e-2
LOUD = 1000.0


@torch.no_grad()
def check_values(model: nn.Module, arch: str) -> None:
    """Refuse a classifier with values that no training leaves behind.

    Raises:
        ClusterqError: a parameter or a BatchNorm layer's statistics are not finite, or a running variance is negative.
    """
    values: dict[str, Tensor] = dict(model.named_parameters())
    for name, layer in batchnorm_layers(model).items():
        values |= {f"{name}.{key}": value for key, value in layer.named_buffers(recurse=False) if value.is_floating_point()}
    bad = next((name for name, value in values.items() if not bool(torch.isfinite(value).all())), None)
    if bad is not None:
        raise ClusterqError(
            f"{arch} has values that are not finite, in {bad}; take weights from before the training went astray.",
            setting="weights",
        )
    if (negative := negative_variance(model)) is not None:
        name, value = negative
        raise ClusterqError(
            f"{arch} has a running variance of {value:g} in the BatchNorm layer {name}, expected none below 0: clusterq learns from these "
            "statistics; check how the weights were made.",
            setting="weights",
        )


@torch.no_grad()
def check_answers(model: nn.Module, spec: InputSpec, arch: str) -> None:
    """Refuse a classifier whose answers are no logits of each image alone.

    Raises:
        ClusterqError: images are changed in place; answers differ from call to call, depend on the other images of a batch, or are probabilities.
    """
    device = next(model.parameters()).device
    images = torch.randn(IMAGES, *spec.shape, generator=torch.Generator().manual_seed(0)).to(device)
    given = images.clone()
    together: Tensor = model(given)
    if not torch.equal(given, images):
        raise ClusterqError(
            f"{arch} changes the images that it is given, expected an answer alone; copy them first (x = x * 2 in place of x.mul_(2)).",
            setting="arch",
        )
    if not bool(torch.isfinite(together).all()):
        return  # fresh weights may overflow; weights from a file are checked value by value
    again: Tensor = model(images)
    if float((together - again).abs().max()) > TOLERANCE * (float(together.abs().max()) or 1.0):
        raise ClusterqError(
            f"the answers of {arch} for the same images differ from call to call (dropout that is always on, noise, or layers that go on "
            "learning), expected a classifier as it is in evaluation; make these depend on self.training.",
            setting="arch",
        )
    alone: Tensor = torch.cat([model(image[None]) for image in images])
    spread = float(together.abs().max()) or 1.0
    if float((together - alone).abs().max()) > TOLERANCE * spread:
        culprit = next(
            (name for name, layer in model.named_modules() if isinstance(layer, _BatchNorm) and layer.running_mean is None),
            None,
        )
        why = f"the layer {culprit} keeps no running statistics" if culprit else "something in it mixes the images of a batch"
        raise ClusterqError(
            f"the answers of {arch} for an image depend on the other images of its batch ({why}), expected a classifier of single images; "
            "train it with track_running_stats=True.",
            setting="arch",
        )
    if float(together.min()) >= 0 and bool(((together.sum(1) - 1).abs() < 1e-4).all()):
        raise ClusterqError(
            f"{arch} returns probabilities (each row sums to 1), expected logits; return what goes into the softmax.",
            setting="arch",
        )
    # Logits grow with the image; what a sigmoid gives does not.
    loud: Tensor = model(LOUD * images)
    constant = torch.equal(loud, together)  # as of a last layer that begins at zero
    if not constant and all(float(answers.min()) >= 0 and float(answers.max()) <= 1 for answers in (together, loud)):
        raise ClusterqError(
            f"{arch} returns probabilities (all answers lie between 0 and 1), expected logits; return what goes into the sigmoid.",
            setting="arch",
        )


def untrained_statistics(model: nn.Module) -> list[str]:
    """Names of the BatchNorm layers whose running statistics are those of a fresh layer: mean 0, variance 1."""
    return [
        name
        for name, layer in batchnorm_layers(model).items()
        if layer.running_mean is not None
        and layer.running_var is not None
        and not bool(layer.running_mean.any())
        and bool((layer.running_var == 1).all())
    ]
