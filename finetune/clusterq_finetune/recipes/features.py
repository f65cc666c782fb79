"""Distance between the student's and the teacher's features: the outputs of all blocks except the logits."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clusterq_common.capture import Call, capture, submodules
from clusterq_common.device.setup import at_least_float32
from clusterq_common.quant.structure import quantizable_layers
from clusterq_finetune.recipes.blocks import find_blocks


def feature_modules(teacher: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Return the names of the modules whose outputs are compared, in order of execution.

    They are the last module of each residual unit, or of each layer outside of units, without the one that gives the logits.

    Args:
        teacher: the float network.
        example: (N, C, H, W) float32, any values.
    """
    blocks, _ = find_blocks(teacher, quantizable_layers(teacher, example), example, "block")
    return tuple(block.modules[-1] for block in blocks[:-1])


@contextmanager
def outputs_of(model: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of the named modules in the model's latest forward pass, by name, within the block."""
    outputs: dict[str, Tensor] = {}

    def keep(call: Call, output: Tensor) -> None:
        outputs[call.name] = output

    with capture(submodules(model, names), after=keep):
        yield outputs


def feature_distance(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Return the mean over modules and images of `||student - teacher||^2 / ||teacher||^2`, a scalar.

    Deep and shallow, wide and narrow features have the same weight. (FitNets' hint, Romero et al., 2015, Eq. 3, on every block,
    in relative units.)

    Args:
        student: (N, ...) by name.
        teacher: the same names and shapes, without gradient.
    """
    distances = []
    for name, wanted in teacher.items():
        wanted = at_least_float32(wanted).flatten(1)
        error = (at_least_float32(student[name]).flatten(1) - wanted).square().sum(1)
        distances.append((error / wanted.square().sum(1).clamp_min(1e-12)).mean())
    return torch.stack(distances).mean()
