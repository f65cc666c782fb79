"""An exponential mean of a student's weights: steadier than the last ones, at no cost in steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightEma:
    """`mean <- d mean + (1 - d) weight` after each step, quantizer steps included.

    d rises to `decay` as (1 + n) / (10 + n), so that a short run does not remember its start. With decay 0 it is the weights
    themselves.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(student.named_parameters())
        self.mean = {name: p.detach().clone() for name, p in self.parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`, from 0."""
        if self.mean:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.mean.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the student has the mean's weights, afterwards its own again."""
        own = {name: self.parameters[name].detach().clone() for name in self.mean}
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(own)

    def finish(self) -> None:
        """The mean becomes the student."""
        self._put(self.mean)

    def state_dict(self) -> dict[str, Tensor]:
        """The mean, for a checkpoint."""
        return self.mean

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a checkpoint's mean."""
        for name, value in state.items():
            self.mean[name].copy_(value)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)
