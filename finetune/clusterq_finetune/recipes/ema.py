"""Exponential moving average of a student's weights. It is steadier than the last weights and costs no additional steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightEma:
    """Moving average of the weights, quantizer steps included: `mean <- d mean + (1 - d) weight` after each step.

    d rises to `decay` as (1 + n) / (10 + n), so that the start does not dominate a short run. With decay 0 the mean is the
    weights themselves.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(student.named_parameters())
        self.mean = {name: p.detach().clone() for name, p in self.parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the mean with the weights after step number `step`, from 0."""
        if self.mean:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.mean.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the student the mean's weights within the block, and its own again afterwards."""
        own = {name: self.parameters[name].detach().clone() for name in self.mean}
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(own)

    def finish(self) -> None:
        """Copy the mean into the student."""
        self._put(self.mean)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the mean, for a checkpoint."""
        return self.mean

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a checkpoint's mean."""
        for name, value in state.items():
            self.mean[name].copy_(value)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)
