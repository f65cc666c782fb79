"""A sample of a shard in memory. Free of torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Logits = np.ndarray[Any, np.dtype[np.float16]]


@dataclass(frozen=True)
class Sample:
    """One synthetic image, with the teacher's answers to its decoded pixels.

    Attributes:
        png: the image, encoded.
        content: `digest.sample_digest` of its label and pixels.
        label: its class.
        asked: the class it was generated for: the label, unless the set's labels are the teacher's.
        seed, attempt: with that class, the key of its noise.
        teacher_top1, teacher_confidence: the teacher's class and its softmax probability.
        logits: (classes,) float16, or None where they are left out.
    """

    png: bytes
    content: bytes
    label: int
    asked: int
    seed: int
    attempt: int
    teacher_top1: int
    teacher_confidence: float
    logits: Logits | None
