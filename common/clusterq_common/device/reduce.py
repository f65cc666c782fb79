"""Sums and means over the processes of a job. With a single process each function returns its input.

Losses use the statistics of the whole batch, across processes. Statistics are nonlinear in the batch, so the processes exchange
moments, and gradients flow back. Let `L_r` be the loss that process r computes. The mean of all `L_r` is minimised. A mean over
a process's own images and any function of reduced statistics then both equal those of one process with the whole batch, once
`average_gradients` has been called.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from clusterq_common.device.distributed import Ranks, peers_alive


def sum_across(x: Tensor) -> Tensor:
    """Return the sum over processes, of equal shape in each; differentiable.

    The gradient is the sum of all processes' gradients.
    """
    if Ranks.current().world == 1:
        return x
    result: Tensor = _Sum.apply(x)
    return result


def mean_across(x: Tensor) -> Tensor:
    """Return the mean over processes, differentiable like `sum_across`."""
    world = Ranks.current().world
    return x if world == 1 else sum_across(x) / world


@torch.no_grad()
def min_across(x: Tensor) -> Tensor:
    """Return the minimum over processes, element by element, of equal shape in each; no gradient."""
    if Ranks.current().world == 1:
        return x.detach()
    least = x.detach().clone(memory_format=torch.contiguous_format)
    with peers_alive():
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return least


@torch.no_grad()
def gather_batch(x: Tensor) -> Tensor:
    """Return the whole batch (world * N, ...) from every process's equal part (N, ...), in the order of ranks; no gradient."""
    world = Ranks.current().world
    if world == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world)]
    with peers_alive():
        torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every parameter's gradient by its mean over processes. Without a gradient in any process it stays without."""
    world = Ranks.current().world
    parameters = list(parameters)
    if world == 1 or not parameters:
        return
    present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
    present = present.to(parameters[0].device)
    # A process whose part of the last batch is empty has no gradients, but must take the same step.
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    with peers_alive():
        torch.distributed.all_reduce(present)
        torch.distributed.all_reduce(flat)
    parts = (flat / world).split([parameter.numel() for parameter in parameters])
    for parameter, part, count in zip(parameters, parts, present.tolist(), strict=True):
        if count:
            # In the parameter's own memory order, because fused optimizers read both in memory order.
            parameter.grad = torch.empty_like(parameter).copy_(part.view_as(parameter))


@torch.no_grad()
def broadcast(module: nn.Module) -> None:
    """Copy the first process's parameters and buffers to every process."""
    if Ranks.current().world == 1:
        return
    with peers_alive():
        for tensor in [*module.parameters(), *module.buffers()]:
            whole = tensor.detach().contiguous()
            torch.distributed.broadcast(whole, src=0)
            tensor.copy_(whole)


# torch.distributed.nn.functional.all_reduce gives the same numbers, but it is all_reduce alone in its backward pass, too: the loss of a
# process would end there in a traceback instead of the sentence of `peers_alive`.
class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _summed(grad)


def _summed(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    with peers_alive():
        torch.distributed.all_reduce(total)
    return total
