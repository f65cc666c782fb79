"""Comparison of a student with another implementation that should give the same results."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clusterq_common.device.distributed import Ranks
from clusterq_common.quant.integer import integer_arithmetic


class Compared(nn.Module):
    """A model that returns the result of `compute` and counts how often `student` agrees.

    Each batch runs through both, and images/s counts both.
    """

    def __init__(self, student: nn.Module, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.student = student
        self._compute = compute
        self._images = 0
        self._agreed = 0
        self._apart = 0.0

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        expected: Tensor = self.student(x)
        logits = self._compute(x)
        self._images += len(x)
        self._agreed += int((logits.argmax(1) == expected.argmax(1)).sum())
        self._apart = max(self._apart, float((logits - expected).abs().max()))
        return logits

    def comparison(self) -> dict[str, float]:
        """Return the percentage of images with the student's class, and the largest difference of a logit.

        They are over all images so far, of all processes; there must be at least one.
        """
        parts = Ranks.current().gather((self._images, self._agreed, self._apart))
        images, agreed, apart = zip(*parts, strict=True)
        return {"agreement_with_student": 100 * sum(agreed) / sum(images), "largest_logit_difference": max(apart)}


def integer_student(student: nn.Module) -> Compared:
    """Return `student` as integer hardware computes it. The speed of this simulation says nothing about hardware."""

    def compute(x: Tensor) -> Tensor:
        with integer_arithmetic(student):
            logits: Tensor = student(x)
        return logits

    return Compared(student, compute)
