"""Losses that make the teacher classify a generated image as its class."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_common.device.setup import at_least_float32
from clusterq_common.run.seeding import stream
from clusterq_gen.losses.batch import StepBatch


class ClassificationLoss:
    """First term of ClusterQ Eq. 7: `CE(M_FP(x), y)`, mean over the batch; a mixed image's y is its shares (Qimera's soft label).

    Two options weigh down easy images, each off by default; p is the teacher's probability of the class:

    - HAST (Li et al., CVPR 2023): each image weighs `(1 - p)^gamma`, so that images which the teacher already classifies well count
      less. The gradient runs through the weight, as its equation is written. The mean is over images, not over weights. For a mixed
      image p is the mean under its shares.
    - IntraQ's soft inception loss (Zhong et al., CVPR 2022, Eq. 8): the target of p is t instead of 1. t is drawn from
      U(epsilon, 1) for each image and step. The paper writes `(p - t)^2`, whose gradient vanishes for a generator that knows no
      class yet. Here the loss is `-t log p - (1 - t) log(1 - p)`. It is smallest at the same p = t, and is the plain cross-entropy
      where t = 1. Mixed images keep t = 1.

    Args:
        hard_gamma: HAST's gamma; 0: all images weigh the same.
        soft_target: IntraQ's epsilon, in (0, 1]; 1: the target probability is 1.
        seed: with the step, it determines the targets.
    """

    def __init__(self, hard_gamma: float = 0.0, soft_target: float = 1.0, seed: int = 0) -> None:
        self.hard_gamma, self.soft_target, self.seed = hard_gamma, soft_target, seed

    def __call__(self, batch: StepBatch) -> Tensor:
        logits = at_least_float32(batch.teacher_logits)
        if self.hard_gamma == 0 and self.soft_target == 1:
            return F.cross_entropy(logits, batch.targets)
        shares = F.one_hot(batch.labels, logits.shape[1]) if batch.mixture is None else batch.mixture
        chance = Chance.of(logits, shares)
        target = self._targets(batch, shares.to(logits))
        return chance.mean(-target * chance.hit - (1 - target) * chance.miss, self.hard_gamma)

    def _targets(self, batch: StepBatch, shares: Tensor) -> Tensor:
        """Return t of this process's images, (N,), drawn for the whole batch."""
        ranks = Ranks.current()
        whole = len(shares) * ranks.world

        def draw(step: int) -> Tensor:
            return torch.rand(whole, generator=stream(self.seed, "soft-target", step))[ranks.share(whole)]

        drawn = batch.draws.take("soft-target", draw, shares.dtype)
        return torch.where(shares.amax(1) == 1, self.soft_target + (1 - self.soft_target) * drawn, 1.0)


def class_loss(logits: Tensor, labels: Tensor, *, targets: Tensor | None = None, gamma: float = 0.0) -> Tensor:
    """Return the classification loss of images that are optimised themselves, mean over the batch.

    Args:
        logits: (N, classes). labels: (N,) int64.
        targets: None for cross-entropy `-log p_y`; (N,) probabilities for IntraQ's soft inception loss as written, `(p_y - target)^2`.
        gamma: HAST's focal weight of each image; 0: all images weigh the same.
    """
    chance = Chance.of(at_least_float32(logits), F.one_hot(labels, logits.shape[1]))
    return chance.mean(-chance.hit if targets is None else (chance.hit.exp() - targets).square(), gamma)


@dataclass(frozen=True)
class Chance:
    """The teacher's probability p of each image's class.

    Attributes:
        logs: (N, classes), logarithms of the probabilities.
        shares: (N, classes), the classes of each image; rows sum to one.
    """

    logs: Tensor
    shares: Tensor

    @classmethod
    def of(cls, logits: Tensor, shares: Tensor) -> "Chance":
        """Return the probabilities by the logits, (N, classes) float32."""
        logs = F.log_softmax(logits, dim=1)
        return cls(logs, shares.to(logs))

    @cached_property
    def hit(self) -> Tensor:
        """log p, (N,); for a mixed image its mean under the shares."""
        return (self.shares * self.logs).sum(1)

    @cached_property
    def miss(self) -> Tensor:
        """log(1 - p), (N,), from the other classes' probabilities. It and its gradient are finite also where p rounds to one."""
        return torch.logsumexp(self.logs + torch.log1p(-self.shares), dim=1)

    def mean(self, losses: Tensor, gamma: float) -> Tensor:
        """Return the mean of each image's loss, (N,), weighted by HAST's `(1 - p)^gamma`. The gradient runs through the weight."""
        return torch.mean(torch.exp(gamma * self.miss) * losses if gamma else losses)
