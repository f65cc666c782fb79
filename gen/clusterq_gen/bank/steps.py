"""Optimisation steps on images: Adam on one image tensor whose memory all batches share."""

from collections.abc import Callable

import torch
from torch import Tensor

from clusterq_common.device.cuda_graph import GraphedStep, Recorder
from clusterq_common.device.setup import to_device_async
from clusterq_gen.bank.classes import Crop

# (images, labels, draws for soft targets, crop) -> scalars by name; see `Optimiser.terms`.
Terms = Callable[[Tensor, Tensor | None, Tensor | None, Crop | None], dict[str, Tensor]]


class ImageSteps:
    """Images of one shape under optimisation, one batch after another.

    All tensors that a step reads keep their memory: images, labels, draws, learning rate and Adam's state. So one recording of a
    step serves every batch. Steps with a crop run eagerly between replayed ones, because a recording has fixed shapes and the
    crop's size changes them.

    `StaticInputs` holds batches that are copied in whole. Here the images are parameters, and of the rest each part changes at its
    own time: labels once a batch, draws and the learning rate in every step.

    Attributes:
        images: (N, C, H, W) float32, normalised, channels_last.

    Args:
        shape: shape of the images.
        terms: function that returns the loss terms; their sum is minimised. It must neither wait for the device nor read a value.
        bounds: lowest and highest value of a pixel, (1, C, 1, 1) each; images are clamped to them.
        device: device of all tensors.
        labelled: whether each image has a class.
        recorder: records and replays the steps.
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
        # A tensor also without a recorder, so that rates are rounded alike: a GPU's fused update reads float32, a CPU's float64.
        precision = torch.float32 if device.type == "cuda" else torch.float64
        self._rate = torch.zeros((), dtype=precision, device=device)
        groups = [{"params": [self.images], "lr": self._rate}]
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=recorder is not None and device.type == "cuda")
        self.graph = None if recorder is None else GraphedStep(self._device_step, recorder)

    @torch.no_grad()
    def begin(self, start: Tensor, labels: Tensor | None) -> None:
        """Start another batch, independent of the one before.

        Args:
            start: (N, C, H, W) normalised; not modified.
            labels: (N,) int64, where images have classes.
        """
        self.images.copy_(start).clamp_(self._low, self._high)
        if self._labels is not None and labels is not None:
            self._labels.copy_(labels)
        for value in self.optimizer.state[self.images].values():
            value.zero_()

    def take_step(self, rate: float, soft: Tensor | None, crop: Crop | None) -> dict[str, Tensor]:
        """Take one step, then clamp the images to the range of eight-bit pixels. Returns the loss terms before the step.

        Args:
            rate: Adam's learning rate.
            soft: (N,) on the host, given in every step of these images or in none.
            crop: part of the images that the step sees; None: whole images.
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
        """Take the step on the device, without synchronising or reading a value, as a CUDA graph requires."""
        terms = self._terms(self.images, self._labels, self._soft, crop)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            self.images.clamp_(self._low, self._high)
        return {name: term.detach() for name, term in terms.items()}
