"""Agreement by entropy: where student and teacher differ by a constant only, the softmax of their difference is uniform."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.setup import at_least_float32


def softmax_entropy(logits: Tensor) -> Tensor:
    """Return `H(softmax(logits))` in nats, (N, classes) -> (N,): 0 for one certain class, log(classes) for a uniform row.

    It uses log-softmax, which is finite for finite logits. A probability that rounds to zero adds zero, with a finite gradient.
    """
    logs = F.log_softmax(logits, dim=1)
    return -(logs.exp() * logs).sum(1)


@dataclass(frozen=True)
class EntropyObjective:
    """Student's objective in AdaDFQ's game (Qian et al., CVPR 2023): `-T^2 mean H(softmax((teacher - student) / T))`.

    Its minimum is `-T^2 log(classes)`, where all logits differ by the same value. It uses no labels.
    """

    temperature: float

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the only term, a scalar.

        Args:
            student_logits: (N, classes).
            teacher_logits: (N, classes), without gradient.
            labels: unused.
        """
        difference = at_least_float32(teacher_logits) - at_least_float32(student_logits)
        return {"entropy": -(self.temperature**2) * softmax_entropy(difference / self.temperature).mean()}
