"""Images between classes: the shares of several classes in each image of a batch."""

import torch
from torch import Tensor

from clusterq_common.run.seeding import stream


def classes_in_mixture(num_classes: int, wanted: int | None) -> int:
    """Return the number of classes in a mixed image, K: as wanted, else a tenth of all, at least two.

    Qimera's released settings: 2 of CIFAR-10's, 10 of CIFAR-100's, 100 (MobileNetV2) or 500 (ResNets) of ImageNet's.

    Raises:
        ValueError: there are not that many classes.
    """
    count = max(2, num_classes // 10) if wanted is None else wanted
    if count > num_classes:
        raise ValueError(f"{count} classes in an image, but the teacher knows {num_classes}")
    return count


def mixtures(seed: int, step: int, labels: Tensor, *, probability: float, per_image: int, num_classes: int) -> Tensor:
    """Return the shares of the classes in each image of a batch, (N, num_classes) float32; rows sum to one.

    Qimera (Choi et al., NeurIPS 2021): superposed class embeddings give samples near the teacher's decision boundaries.
    With `probability`, each image by itself, an image mixes its label with `per_image - 1` other classes in shares softmax(n), n
    standard normal; otherwise its row is one-hot. (The released code draws whole batches of either kind, classes with repetition
    and noise for each class; a batch here has both kinds, so that class-wise losses find their samples in every step.)

    Args:
        labels: (N,) int64, the whole batch's.
    """
    random = stream(seed, "mixture", step)
    mixed = torch.rand(len(labels), generator=random) < probability
    order = torch.rand(len(labels), num_classes, generator=random)
    order.scatter_(1, labels[:, None], 2.0)  # above all others: the label is always one of the classes
    chosen = order.topk(per_image).indices
    shares = torch.randn(len(labels), per_image, generator=random).softmax(1)
    pure = torch.zeros(len(labels), num_classes).scatter_(1, labels[:, None], 1.0)
    return torch.where(mixed[:, None], torch.zeros_like(pure).scatter_(1, chosen, shares), pure)
