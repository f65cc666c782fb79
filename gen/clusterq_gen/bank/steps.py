"""The steps in which images are optimised: Adam on images that stay in one place, whichever batch they are of."""

from collections.abc import Callable

import torch
from torch import Tensor

from clusterq_common.device.cuda_graph import GraphedStep, Recorder
from clusterq_common.device.setup import to_device_async
from clusterq_gen.bank.classes import Crop

# From images, labels, draws for soft targets, and a crop to scalars by name: see `Optimiser.terms`.
Terms = Callable[[Tensor, Tensor | None, Tensor | None, Crop | None], dict[str, Tensor]]


class ImageSteps:
    """Images of one shape in training, one batch after another.

    All that a step reads lies in tensors whose memory stays: images, labels, draws, the rate and Adam's state. So one recording of a
    step serves every batch. Steps that see a crop run plainly, between those that are replayed: the crop's size decides shapes, which a
    recording holds fast.

    Attributes:
        images: (N, C, S, S) float32, normalised, channels_last.

    Args:
        shape: of the images.
        terms: what is minimised is their sum. They wait for nothing and look at no value.
        bounds: the lowest and the highest value of a pixel, (1, C, 1, 1) each; images are clamped to them.
        device: where all that lies.
        labelled: whether each image has a class.
        recorder: where steps are recorded and replayed.
    """

    def __init__(
        self,
        shape: torch.Size,
        terms: Terms,
        bounds: tuple[Tensor, Tensor],
        device: torch.device,
        *,
        labelled: bool,
        recorder: Recorder | None = None,
    ) -> None:
        self.device = device
        self.images = torch.empty(shape, device=device, memory_format=torch.channels_last).requires_grad_()
        self._terms = terms
        self._low, self._high = (bound.to(device) for bound in bounds)
        self._labels = torch.empty(len(self.images), dtype=torch.int64, device=device) if labelled else None
        self._soft: Tensor | None = None
        # A tensor also where nothing is recorded, so that rates are rounded alike: a GPU's fused update reads float32, a CPU's float64.
        precision = torch.float32 if device.type == "cuda" else torch.float64
        self._rate = torch.zeros((), dtype=precision, device=device)
        groups = [{"params": [self.images], "lr": self._rate}]
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=recorder is not None and device.type == "cuda")
        self.graph = None if recorder is None else GraphedStep(self._device_step, recorder)

    @torch.no_grad()
    def begin(self, start: Tensor, labels: Tensor | None) -> None:
        """Go on to another batch, of which nothing depends on the one before.

        Args:
            start: (N, C, S, S) normalised; left as it is.
            labels: (N,) int64, where images have classes.
        """
        self.images.copy_(start).clamp_(self._low, self._high)
        if self._labels is not None and labels is not None:
            self._labels.copy_(labels)
        for value in self.optimizer.state[self.images].values():
            value.zero_()

    def take_step(self, rate: float, soft: Tensor | None, crop: Crop | None) -> dict[str, Tensor]:
        """One step; afterwards images are clamped to what eight-bit pixels can hold. Returns the terms before it.

        Args:
            rate: Adam's.
            soft: (N,) on the host, in every step of these images or in none.
            crop: what the step sees; None: whole images.
        """
        self._rate.fill_(rate)
        if soft is not None:
            drawn = to_device_async(soft, self.device)
            self._soft = torch.empty_like(drawn) if self._soft is None else self._soft
            self._soft.copy_(drawn)
        if self.graph is None:
            return self._device_step(crop)
        if crop is not None:
            return self.graph.recorder.plain(lambda: self._device_step(crop))
        return self.graph()

    def _device_step(self, crop: Crop | None = None) -> dict[str, Tensor]:
        """The step itself, on what lies on the device: it waits for nothing and looks at no value, as a CUDA graph needs it."""
        terms = self._terms(self.images, self._labels, self._soft, crop)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            self.images.clamp_(self._low, self._high)
        return {name: term.detach() for name, term in terms.items()}
