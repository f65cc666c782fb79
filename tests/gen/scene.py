"""A small teacher and one batch, for the tests of losses."""

import torch
from torch import Tensor, nn

from clusterq_common.taps import ClassGroups, batchnorm_taps, stored_statistics
from clusterq_gen.losses.batch import StepBatch
from clusterq_gen.training.centroids import Centroids, SemanticLayers
from clusterq_gen.training.step_random import StepRandom

LABELS = torch.tensor([0, 2, 0, 2, 5, 5, 0])
EPS = 1e-3


def draws_at(step: int) -> StepRandom:
    """Random draws of a step."""
    draws = StepRandom(LABELS.device)
    draws.begin(step)
    return draws


class Scene:
    """A small teacher, a batch, and everything that the losses look at."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        norms = [nn.BatchNorm2d(c, eps=EPS) for c in (4, 3, 5)]
        convolutions = [nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3), nn.Conv2d(3, 5, 3)]
        layers = [layer for pair in zip(convolutions, norms, strict=True) for layer in (*pair, nn.ReLU())]
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6)).eval()
        for norm in norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        self.images = torch.randn(7, 2, 12, 12, requires_grad=True)
        self.keep = torch.tensor([1, 1, 1, 0, 0, 0, 1]).bool()  # class 5 has no correctly classified sample
        with batchnorm_taps(self.model) as self.taps:
            self.logits = self.model(self.images)
        self.layers = SemanticLayers.choose(self.taps.moments, stored_statistics(self.model), 1)
        self.centroids = Centroids(6, self.layers)
        self.centroids.mean.normal_()
        self.centroids.std.uniform_(0.5, 1.5)
        self.centroids.known[:3] = True
        self.features = self.layers.statistics(self.taps, ClassGroups.of(LABELS), self.keep)
        self.batch = StepBatch(
            draws_at(3),
            self.images,
            LABELS,
            ClassGroups.of(LABELS),
            self.logits,
            self.taps,
            stored_statistics(self.model),
            self.features,
            self.centroids,
        )

    def inputs(self) -> list[Tensor]:
        """Inputs of the BatchNorm layers, float64."""
        layers, x = [], self.images
        for layer in self.model:
            if isinstance(layer, nn.BatchNorm2d):
                layers.append(x.detach().double())
            x = layer(x)
        return layers

    def class_statistics(self, label: int) -> list[tuple[Tensor, Tensor]]:
        """Mean and sqrt(var + eps) of a class in the semantic layers, by a loop over kept samples."""
        members = [n for n in range(7) if LABELS[n] == label and self.keep[n]]
        result = []
        for x in self.inputs()[1:]:
            joined = torch.cat([x[n].reshape(x.shape[1], -1) for n in members], dim=1)
            result.append((joined.mean(1), (joined.var(1, correction=0) + EPS).sqrt()))
        return result
