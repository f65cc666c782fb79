"""What a step draws on the host: each a function of the seed and the step, sent to the device without waiting."""

from collections.abc import Callable

import torch
from torch import Tensor

from clusterq_common.device.setup import to_device_async


class StepRandom:
    """The draws of one step, by name.

    Attributes:
        device: where they go.
        kept: whether a draw lies in the same memory in every step, as a CUDA graph of the step needs it.
        step: the step in hand.
    """

    def __init__(self, device: torch.device, *, kept: bool = False) -> None:
        self.device, self.kept, self.step = device, kept, 0
        self._kept: dict[str, tuple[Callable[[int], Tensor], Tensor]] = {}

    def begin(self, step: int) -> None:
        """Go on to a step: what is kept is drawn anew now, everything else when it is asked for."""
        self.step = step
        for make, held in self._kept.values():
            held.copy_(to_device_async(make(step), self.device, held.dtype), non_blocking=True)

    def take(self, name: str, make: Callable[[int], Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """One draw, on the device.

        Args:
            name: the same name is the same draw.
            make: from the step to values on the host; their shape is that of every step, where draws are kept.
            dtype: of the result; as drawn when None.
        """
        if name in self._kept:
            return self._kept[name][1]
        drawn = to_device_async(make(self.step), self.device, dtype)
        if self.kept:
            # A tensor of its own: what `make` gave may be a view of something.
            drawn = drawn.clone()
            self._kept[name] = (make, drawn)
        return drawn
