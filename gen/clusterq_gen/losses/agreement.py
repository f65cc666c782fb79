"""AdaDFQ's agreement loss: it favours samples that teacher and student both classify correctly."""

import torch.nn.functional as F
from torch import Tensor

from clusterq_common.device.setup import at_least_float32
from clusterq_gen.losses.batch import StepBatch


class AgreementLoss:
    """L_as of AdaDFQ (Qian et al., CVPR 2023): `CE(zP + zQ, y)`, mean over the batch.

    While there is no student the teacher stands in for it, as a student without quantization error: `CE(2 zP, y)`.
    """

    def __call__(self, batch: StepBatch) -> Tensor:
        teacher = at_least_float32(batch.teacher_logits)
        student = teacher if batch.student_logits is None else at_least_float32(batch.student_logits)
        return F.cross_entropy(teacher + student, batch.targets)
