"""Time of the class-wise part of a ClusterQ step alone: moments, class statistics, FDA, DE, backward, and the centroids' update.

    python tools/bench/classwise.py

On BatchNorm inputs of the deep half of a ResNet-20, for numbers of classes and images, beside the same written as loops over samples
and layers (plain.py). Interleaved turns, medians of ratios within a turn.
"""

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from interleaved import interleaved, table
from plain import batchnorm_inputs, plain_class_losses
from torch import Tensor, nn

from clusterq_cli.main import run_guarded
from clusterq_common.taps import ClassGroups, batchnorm_taps, stored_statistics
from clusterq_gen.config import MethodConfig
from clusterq_gen.losses.batch import StepBatch
from clusterq_gen.losses.diversity import DiversityLoss
from clusterq_gen.losses.fda import FeatureAlignmentLoss
from clusterq_gen.training.centroids import Centroids, SemanticLayers
from clusterq_gen.training.step_random import StepRandom

# Channels and side of the inputs of the deep half.
SHAPES = [(32, 16)] * 4 + [(64, 8)] * 6


class Untouched(nn.BatchNorm2d):
    """A BatchNorm layer with its hooks and statistics but without its cost."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Layers(nn.Module):
    """Independent BatchNorm layers, each with an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Untouched(channels) for channels, _ in SHAPES)

    def forward(self, inputs: list[Tensor]) -> None:
        for layer, x in zip(self.layers, inputs, strict=True):
            layer(x)


def main(
    classes: Annotated[list[int], typer.Option(min=2, help="Numbers of classes.")] = [10, 100, 1000],  # noqa: B006
    batches: Annotated[list[int], typer.Option(min=1, help="Numbers of images in a batch.")] = [16, 256],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1, help="Turns.")] = 9,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Time the part for each number of classes and images."""

    def run() -> None:
        torch.set_num_threads(threads or torch.get_num_threads())
        for batch in batches:
            for number in classes:
                print(f"{number} classes, batch {batch}, {torch.get_num_threads()} threads, {repeats} turns")
                print(table(interleaved(_actions(number, batch), repeats), "by class"), flush=True)

    run_guarded(run, debug=False)


def _actions(classes: int, batch: int) -> dict[str, Callable[[], None]]:
    random = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(batch, channels, side, side, generator=random)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_(True)
        for channels, side in SHAPES
    ]
    labels = torch.randint(classes, (batch,), generator=random)
    keep = torch.rand(batch, generator=random) < 0.9
    groups, model, method = ClassGroups.of(labels), Layers(), MethodConfig()
    with batchnorm_taps(model) as taps, torch.no_grad():
        model(inputs)
        layers = SemanticLayers.choose(taps.moments, stored_statistics(model), 0)
    centroids = Centroids(classes, layers)
    centroids.known[:] = True
    losses = [
        (method.alpha_fda, FeatureAlignmentLoss("mean")),
        (method.alpha_de, DiversityLoss("gaussian", method.de_mean_std, method.de_std_std, "mean", seed=0)),
    ]

    def by_class() -> None:
        with batchnorm_taps(model) as taps:
            model(inputs)
            features = layers.statistics(taps, groups, keep)
            step = StepBatch(StepRandom(labels.device), inputs[0], labels, groups, labels, taps, {}, features, centroids)
            torch.stack([weight * loss(step) for weight, loss in losses]).sum().backward()
        centroids.update(features, method.ema_rate)

    def by_sample() -> None:
        with batchnorm_inputs(model) as inputs_by_layer:
            model(inputs)
            named = {name: inputs_by_layer[name] for name in layers.names}
            plain_class_losses(named, labels, keep, centroids, method, random).backward()

    return {"by class": by_class, "by sample, plain": by_sample}


if __name__ == "__main__":
    typer.run(main)
