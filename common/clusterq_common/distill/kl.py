"""Knowledge distillation: a loss between the softened distributions of student and teacher."""

import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.setup import at_least_float32


def distillation_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Return `T^2 * KL(softmax(teacher / T) || softmax(student / T))`, summed over classes, mean over the batch.

    It is the second term of ClusterQ Eq. 9 (Hinton et al., 2015). The mean is over samples only: a mean over batch *and* classes
    would weaken it by the number of classes.

    Args:
        teacher_logits: (N, classes); a gradient through them is neither added nor cut off here.
        student_logits: (N, classes).
        temperature: T > 0.
    """
    teacher = F.log_softmax(at_least_float32(teacher_logits) / temperature, dim=1)
    student = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
