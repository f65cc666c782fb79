"""Real images with labels, in the layouts people keep them in. Only evaluation looks at these."""

from clusterq_finetune.data.real.base import ValidationBatch, ValidationImages
from clusterq_finetune.data.real.open import open_validation
from clusterq_finetune.data.real.remarks import Remark

__all__ = ["Remark", "ValidationBatch", "ValidationImages", "open_validation"]
