"""AdaDFQ's disagreement loss: it favours samples that the teacher classifies correctly and the student does not."""

import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.setup import at_least_float32
from clusterq_gen.losses.batch import StepBatch


class DisagreementLoss:
    """L_ds of AdaDFQ (Qian et al., CVPR 2023): `CE(zP - zQ, y)`, mean over the batch.

    It is smallest where the teacher's logits zP lead for the class and the student's zQ do not.
    """

    def __call__(self, batch: StepBatch) -> Tensor:
        return F.cross_entropy(logit_difference(batch), batch.targets)


def logit_difference(batch: StepBatch) -> Tensor:
    """Return `zP - zQ`, teacher minus student, (N, classes), at least float32, with gradient to the images through both."""
    assert batch.student_logits is not None
    return at_least_float32(batch.teacher_logits) - at_least_float32(batch.student_logits)
