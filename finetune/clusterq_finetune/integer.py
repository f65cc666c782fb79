"""A student in integer arithmetic, evaluated beside the fake-quantized one it should equal."""

import torch
from torch import Tensor, nn

from clusterq_common.quant.integer import integer_arithmetic
from clusterq_common.runtime.distributed import Ranks


class IntegerStudent(nn.Module):
    """Computes as `student` does on integer hardware, and counts how often the two disagree.

    Each batch runs through both; images/s is that of the simulation, which says nothing about hardware.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self._images = 0
        self._agreed = 0
        self._apart = 0.0

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        expected: Tensor = self.student(x)
        with integer_arithmetic(self.student):
            found: Tensor = self.student(x)
        self._images += len(x)
        self._agreed += int((found.argmax(1) == expected.argmax(1)).sum())
        self._apart = max(self._apart, float((found - expected).abs().max()))
        return found

    def comparison(self) -> dict[str, float]:
        """Over all images so far, of all processes, at least one: percent with the same class as the student, and the largest difference of a logit."""
        parts = Ranks.current().gather((self._images, self._agreed, self._apart))
        images, agreed, apart = zip(*parts, strict=True)
        return {"agreement_with_student": 100 * sum(agreed) / sum(images), "largest_logit_difference": max(apart)}
