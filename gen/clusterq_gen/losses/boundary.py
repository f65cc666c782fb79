"""AdaDFQ's boundary loss: it keeps the disagreement of teacher and student between two boundaries."""

import math

import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.reduce import min_across
from clusterq_common.distill.entropy import softmax_entropy
from clusterq_gen.losses.batch import StepBatch
from clusterq_gen.losses.disagreement import logit_difference

# In nats. If all entropies are this close to the largest possible one, student and teacher agree, and the quotient would only
# magnify rounding errors.
LEAST_SPAN = 1e-3


class BoundaryLoss:
    """L_bound of AdaDFQ (Qian et al., CVPR 2023): `mean relu(lambda_l - H') + mean relu(H' - lambda_u)`.

    `H` is the entropy of `softmax(zP - zQ)`, `H' = (H - min H) / (log N_C - min H)` with the smallest one of the whole batch: 0
    for the image on which student and teacher differ most, 1 where they do not differ. The minimum counts as a constant: with a
    gradient through it, a batch could get inside the boundaries by making its worst image worse.

    Args:
        lower: lambda_l; below it student and teacher disagree too much on an image.
        upper: lambda_u; above it they agree too much for the student to learn from the image.
    """

    def __init__(self, lower: float, upper: float) -> None:
        self.lower, self.upper = lower, upper

    def __call__(self, batch: StepBatch) -> Tensor:
        entropy = softmax_entropy(logit_difference(batch))
        least = min_across(entropy.amin())
        span = (math.log(batch.teacher_logits.shape[1]) - least).clamp_min(LEAST_SPAN)
        relative = (entropy - least) / span
        return F.relu(self.lower - relative).mean() + F.relu(relative - self.upper).mean()
