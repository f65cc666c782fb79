"""The generated image must look like its class to the teacher."""

import torch.nn.functional as F
from torch import Tensor

from clusterq_common.runtime.precision import at_least_float32
from clusterq_gen.losses.batch import StepBatch


class ClassificationLoss:
    """First term of ClusterQ Eq. 7: `CE(M_FP(x), y)`, mean over the batch; a mixed image's y is its shares (Qimera's soft label)."""

    def __call__(self, batch: StepBatch) -> Tensor:
        return F.cross_entropy(at_least_float32(batch.teacher_logits), batch.targets)
