"""Random draws of a step on the host. Each depends on the seed and the step, and is copied to the device asynchronously."""

from collections.abc import Callable

import torch
from torch import Tensor

from clusterq_common.device.setup import to_device_async


class StepRandom:
    """The draws of one step, by name.

    Kept draws are renewed one by one, each by its own function, so they are no batch for `StaticInputs`.

    Attributes:
        device: device of the draws.
        kept: whether a draw keeps the same memory in every step, as a CUDA graph of the step requires.
        step: the current step.
    """

    def __init__(self, device: torch.device, *, kept: bool = False) -> None:
        self.device, self.kept, self.step = device, kept, 0
        self._kept: dict[str, tuple[Callable[[int], Tensor], Tensor]] = {}

    def begin(self, step: int) -> None:
        """Start a step. Kept draws are renewed now, all others when they are requested."""
        self.step = step
        for make, held in self._kept.values():
            held.copy_(to_device_async(make(step), self.device, held.dtype), non_blocking=True)

    def take(self, name: str, make: Callable[[int], Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """Return one draw, on the device.

        Args:
            name: name of the draw. The same name returns the same draw.
            make: function from the step to values on the host. Where draws are kept, their shape must not depend on the step.
            dtype: of the result; as drawn when None.
        """
        if name in self._kept:
            return self._kept[name][1]
        drawn = to_device_async(make(self.step), self.device, dtype)
        if self.kept:
            # Copied, because the result of `make` may be a view of another tensor.
            drawn = drawn.clone()
            self._kept[name] = (make, drawn)
        return drawn
