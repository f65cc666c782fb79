"""Inputs and targets of a block for its reconstruction."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clusterq_common.capture import Call, capture, submodules
from clusterq_common.device.setup import to_device_async
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.network_input import to_network_input
from clusterq_finetune.recipes.blocks import Block

BYTES = 4
IMAGES_AT_ONCE = 64


class BlockBatch(NamedTuple):
    """Float32, (N, ...): the block's input in the float network, in the student so far, and its output in the float network."""

    float_input: Tensor
    student_input: Tensor
    target: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> "BlockBatch":
        """Return a batch with `change` applied to each tensor."""
        return BlockBatch(*map(change, self))


class BlockData:
    """A block's inputs and targets on some images, held on the device where they fit, else recomputed for each batch.

    The first blocks have the largest data, which take the least time to recompute.

    Args:
        teacher: the float network, in eval mode.
        student: the same network, with everything before the block quantized as it will stay.
        block: the block to record.
        pixels: (N, C, H, W) uint8.
        spec: format of the images.
        device: device of both networks.
        limit: number of bytes that may be held.
        low_pass: see `to_network_input`.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        block: Block,
        pixels: Tensor,
        spec: InputSpec,
        device: torch.device,
        limit: float,
        low_pass: float = 0.0,
    ) -> None:
        self.teacher, self.student, self.block = teacher, student, block
        self.pixels, self.spec, self.device, self.low_pass = pixels, spec, device, low_pass
        self.held: BlockBatch | None = None
        example = self._compute(pixels[:1])
        self.bytes = len(pixels) * BYTES * sum(tensor.numel() for tensor in example)
        if self.bytes <= limit:
            whole = BlockBatch(*(_empty(len(pixels), tensor) for tensor in example))
            for start in range(0, len(pixels), IMAGES_AT_ONCE):
                part = slice(start, start + IMAGES_AT_ONCE)
                for rows, computed in zip(whole, self._compute(pixels[part]), strict=True):
                    rows[part] = computed
            self.held = whole

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> BlockBatch:
        """Return copies of the rows of some images, given by indices, int64 (N,)."""
        if self.held is None:
            return self._compute(self.pixels[indices])
        at = to_device_async(indices, self.device)
        return BlockBatch(*(_channels_last(rows[at]) for rows in self.held))

    def in_order(self, count: int | None = None) -> Iterator[BlockBatch]:
        """Yield the first `count` images, or all, in small batches."""
        for indices in torch.arange(len(self) if count is None else min(count, len(self))).split(IMAGES_AT_ONCE):
            yield self.batch(indices)

    def _compute(self, pixels: Tensor) -> BlockBatch:
        images = to_network_input(pixels.to(self.device), self.spec, self.low_pass)
        float_input, target = run_until(self.teacher, self.block, images)
        student_input, _ = run_until(self.student, self.block, images, output=False)
        assert target is not None
        return BlockBatch(float_input, student_input, target)


class _BlockReachedError(Exception):
    """Raised to stop a forward pass that has reached the block."""


@torch.no_grad()
def run_until(model: nn.Module, block: Block, images: Tensor, *, output: bool = True) -> tuple[Tensor, Tensor | None]:
    """Run a network no further than a block. Returns copies of the block's input and, with `output`, of its output."""
    seen: list[Tensor] = []

    def entered(call: Call) -> None:
        seen.append(call.args[0].detach().clone())  # the block may work in place
        if not output:
            raise _BlockReachedError

    def left(_: Call, result: Tensor) -> None:
        seen.append(result.detach().clone())
        raise _BlockReachedError

    first, last = submodules(model, block.modules[:1]), submodules(model, block.modules[-1:])
    with suppress(_BlockReachedError), capture(first, before=entered), capture(last, after=left):
        model(images)
    return seen[0], seen[1] if output else None


def _empty(count: int, like: Tensor) -> Tensor:
    return _channels_last(torch.empty(count, *like.shape[1:], device=like.device, dtype=like.dtype))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
