"""The generator's input: class labels and noise. Each depends on the seed and the step alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_common.run.seeding import stream
from clusterq_common.taps import ClassGroups

# With fewer images of a class in a batch, the statistics of the class are unreliable.
IMAGES_PER_CLASS = 4


@dataclass(frozen=True)
class LatentBatch:
    """Input of the generator in one step.

    Attributes:
        z: (N, latent_size) noise.
        labels: (N,) int64; of a mixed image, one of its classes.
        groups: the labels grouped by class.
        mixture: (N, classes), each image's shares of the classes; None where no image is mixed.
    """

    z: Tensor
    labels: Tensor
    groups: ClassGroups
    mixture: Tensor | None = None

    @property
    def classes(self) -> Tensor:
        """Requested classes: the labels, or the shares where images are mixed. Generator and cross-entropies accept both."""
        return self.labels if self.mixture is None else self.mixture

    @property
    def unmixed(self) -> Tensor:
        """(N,) bool: true for images of a single class."""
        return torch.ones_like(self.labels, dtype=torch.bool) if self.mixture is None else self.mixture.amax(1) == 1

    def asked_for(self, answer: Tensor) -> Tensor:
        """Return (N,) bool: whether `answer`, (N,) int64, is the image's class, or one of them."""
        return self.labels == answer if self.mixture is None else self.mixture.gather(1, answer[:, None])[:, 0] > 0


def classes_in_batch(num_classes: int, batch_size: int, wanted: int | None) -> int:
    """Return the number of distinct classes in a batch: as wanted, else as many as leave four images each, at most all."""
    return min(num_classes, batch_size, wanted or max(1, batch_size // IMAGES_PER_CLASS))


def batch_labels(seed: int, step: int, *, batch_size: int, per_batch: int, num_classes: int) -> tuple[Tensor, ClassGroups]:
    """Return the labels of one batch, (N,) int64, and their groups: `per_batch` distinct classes with equally many images (±1).

    Classes are taken from a shuffled deck, which is shuffled again each time it is used up. So every class comes up equally
    often, also with 1000 classes and a batch of 16.
    """
    steps_per_deck = -(-num_classes // per_batch)
    deck = torch.randperm(num_classes, generator=stream(seed, "deck", step // steps_per_deck))
    places = (step % steps_per_deck * per_batch + torch.arange(per_batch)) % num_classes
    classes = deck[places].sort().values
    row = torch.arange(batch_size) % per_batch
    return classes[row], ClassGroups(classes, row)


def noise(seed: int, step: int, *, batch_size: int, latent_size: int) -> Tensor:
    """Return the standard normal noise of one batch, (N, latent_size) float32."""
    return torch.randn(batch_size, latent_size, generator=stream(seed, "noise", step))


def candidate_noise(seed: int, label: int, attempt: int, *, latent_size: int) -> Tensor:
    """Return the noise of one candidate image for a shard, (latent_size,): the `attempt`-th try at an image of class `label`."""
    return torch.randn(latent_size, generator=stream(seed, "candidate", label, attempt))
