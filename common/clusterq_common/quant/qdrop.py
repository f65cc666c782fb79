"""QDrop: quantization of activations dropped at random in training."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clusterq_common.capture import Call, capture
from clusterq_common.quant.fake_quantize import lies_dense
from clusterq_common.quant.fake_quantizer import FakeQuantizer


class RandomMask:
    """Random masks of the elements that keep their float value, one for each site in a step where activations are dropped.

    Each site's random values have their own memory, the same in every step, so that a recorded step finds them there. So the
    tensors of a site must have one size.

    Attributes:
        threshold: the probability in 256ths; 0 draws nothing.
    """

    def __init__(self, probability: float) -> None:
        self.threshold = round(probability * 256)
        self._noise: list[Tensor] = []
        self._place = 0
        self._random = torch.Generator()

    def begin(self, random: torch.Generator) -> None:
        """Start a new step: draw for all sites known so far, in the order in which they run.

        Args:
            random: generator on the device of the tensors. On a GPU, drawing masks of whole activations on the CPU would cost more
                than the layers.
        """
        self._place, self._random = 0, random
        for words in self._noise:
            self._draw(words)

    def like(self, x: Tensor) -> Tensor:
        """Return zeros and ones of the shape and type of `x`, with the given probability of a one, if that is not 0."""
        # One byte an element: a third of the time that torch.rand takes.
        count = -(-x.numel() // 8)
        if self._place == len(self._noise):
            self._noise.append(self._draw(torch.empty(count, dtype=torch.int64, device=x.device)))
        words = self._noise[self._place]
        self._place += 1
        if len(words) != count:
            raise ValueError(f"place {self._place} had tensors of about {8 * len(words)} elements, now {x.numel()}")
        # A byte cannot be compared with 256.
        mask = (words.view(torch.uint8)[: x.numel()] <= self.threshold - 1).to(x.dtype)
        # In the memory order of x, so that both are read in the same order.
        return mask.as_strided(x.shape, x.stride()) if lies_dense(x) else mask.view(x.shape)

    def _draw(self, words: Tensor) -> Tensor:
        return words.random_(-(2**63), None, generator=self._random)

    def mix(self, kept: Tensor, x: Tensor) -> Tensor:
        """Return `x` with the masked elements taken from `kept`."""
        # Exact at weights of 0 and 1, and several times as fast as torch.where on a CPU.
        return torch.lerp(x, kept, self.like(x)) if self.threshold else x


@contextmanager
def dropped(quantizers: Iterable[FakeQuantizer], mask: RandomMask) -> Iterator[None]:
    """Let the quantizers leave elements in float at random within the block (QDrop, Wei et al., 2022, Eq. 6-7)."""

    def mix(call: Call, output: Tensor) -> Tensor:
        return mask.mix(call.args[0], output)

    dropping = quantizers if mask.threshold else ()
    with capture({str(number): quantizer for number, quantizer in enumerate(dropping)}, after=mix):
        yield
