"""Fake-quantization and its gradients, with the fastest operations of each device."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from clusterq_common.quant.grid import Grid

# Numbers of values. A piece of 512 KiB fits into a core's second-level cache; below two million values all fit into the shared one.
PIECE = 2**17
LONG = 2**21


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, grid: Grid, *, recompute: bool = False
) -> Tensor:
    """Return `(clamp(round(x * (1 / s)) + z, low, high) - z) * s`, halves to even; differentiable in `x` and `scale`.

    The gradient in x is 1 inside the grid's real range, borders included, and 0 outside (straight-through, clipped). The gradient
    in scale is LSQ's (Esser et al., 2020, Eq. 3 and section 2.2): (y - x) / s inside, y / s outside, times 1 / sqrt(N high). N is
    the number of values that share a step; where steps are per tensor, it is the number of values of one image.

    Args:
        x: float32 or float64.
        scale: float32, (1,), or (channels,) with `axis` 0.
        zero_point: int32, shape of `scale`.
        axis: None for one step for the tensor, 0 for one for each slice of dimension 0.
        grid: the integer grid.
        recompute: keep no copy of the result for the gradient, but recompute it there (see `computed_again`).

    Returns:
        Shape, dtype and memory order of `x`.
    """
    result: Tensor = _FakeQuantize.apply(x, scale, zero_point, axis, grid, recompute)
    return result


def broadcast_shape(x: Tensor, axis: int | None) -> list[int]:
    """Return the shape in which a scale multiplies `x`: -1 at its channel axis, 1 elsewhere."""
    return [1] * x.dim() if axis is None else [-1 if dimension == axis else 1 for dimension in range(x.dim())]


def computed_again(y: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which an operation does not save `y`, a result of `fake_quantize` with `recompute`, for its gradient.

    The values from which `y` was computed are kept anyway (also by the operation that made them). In the backward pass `y` is
    recomputed from them, bit by bit the same. Other tensors, and results that have changed since, are saved as usual.
    """
    if torch.compiler.is_compiling():  # a compiler decides by itself what is kept
        return nullcontext()
    node = y.grad_fn
    if not isinstance(node, _FakeQuantize._backward_cls) or not node.recompute:
        return nullcontext()
    memory, shape, dtype = y.data_ptr(), y.shape, y.dtype

    def pack(saved: Tensor) -> Any:
        return node if (saved.data_ptr(), saved.shape, saved.dtype) == (memory, shape, dtype) else saved

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: _values(kept) if kept is node else kept)


class _FakeQuantize(torch.autograd.Function):
    """Autograd function. Both cases of the scale's gradient are `(y - inside * x) / s`, which needs two dot products only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, grid: Grid, recompute: bool
    ) -> Tensor:
        y = _on_grid(x, scale, zero_point, axis, grid)
        ctx.learned, ctx.axis, ctx.grid = ctx.needs_input_grad[1], axis, grid
        ctx.recompute, ctx.again = recompute, None
        ctx.save_for_backward(x, scale, zero_point, *([y] if ctx.learned and not recompute else []))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        x, scale, zero_point, *kept = ctx.saved_tensors
        grid: Grid = ctx.grid
        grad_x = _inside(grad, x, scale, zero_point, ctx.axis, grid)
        if not ctx.learned:
            return grad_x, None, None, None, None, None
        y, count = kept[0] if kept else _values(ctx), x.numel() / x.shape[0]
        ctx.again = None
        if ctx.axis is None:
            slope = _inner(grad, y) - _inner(grad_x, x)
        else:
            slope = torch.addcmul(grad * y, grad_x, x, value=-1).flatten(1).sum(1)
        return grad_x, slope / scale / (count * grid.high) ** 0.5, None, None, None, None


def _values(ctx: Any) -> Tensor:
    """Return the function's result again, computed once in a backward pass for all its users."""
    if ctx.again is None:
        x, scale, zero_point = ctx.saved_tensors
        with torch.no_grad():
            ctx.again = _on_grid(x, scale, zero_point, ctx.axis, ctx.grid)
    again: Tensor = ctx.again
    return again


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products, a scalar. On a CPU no tensor of products is made, which would cost an allocation each time."""
    if a.device.type != "cpu" or a.stride() != b.stride() or not lies_dense(a):
        return torch.sum(a * b)
    rows = [tensor.as_strided((tensor.numel(),), (1,)).split(PIECE) for tensor in (a, b)]
    # A sum of short sums is more exact than one long sum in float32.
    return torch.stack([torch.dot(left, right) for left, right in zip(*rows, strict=True)]).sum()


def _on_grid(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, grid: Grid) -> Tensor:
    # A compiler fuses the passes below with the operations around them.
    if x.device.type != "cpu" and axis is None and not torch.compiler.is_compiling():
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, grid.low, grid.high)
    # On a CPU four vectorised passes take a tenth of the time of torch's fused kernel, which converts each value to an integer and
    # back. On a GPU the fused kernel for channels would synchronise, because it checks all zero-points first. The integers are the
    # same, since float32 represents them all.
    # Exported programs accept any number of images and may run with gradients, so `out=` is not used there.
    if axis is None and not torch.compiler.is_compiling() and x.numel() >= LONG and lies_dense(x):
        return _piece_by_piece(x, scale, zero_point, grid)
    shape = broadcast_shape(x, axis)
    y = x * (1.0 / scale).view(shape)
    y.round_()
    if grid.scheme == "symmetric":
        y.clamp_(grid.low, grid.high)
    else:
        zero = zero_point.view(shape)
        y.clamp_(grid.low - zero, grid.high - zero)
    return y.mul_(scale.view(shape))


def _piece_by_piece(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Fake-quantize in the order of memory, in pieces that fit the cores' caches, so that three of four passes read from cache."""
    y, inverse = torch.empty_like(x), 1.0 / scale
    # Python numbers as limits are several times as fast as tensors.
    zero = int(zero_point)
    rows = [tensor.as_strided((tensor.numel(),), (1,)).split(PIECE * torch.get_num_threads()) for tensor in (x, y)]
    for given, made in zip(*rows, strict=True):
        torch.mul(given, inverse, out=made)
        made.round_().clamp_(grid.low - zero, grid.high - zero).mul_(scale)
    return y


def lies_dense(x: Tensor) -> bool:
    """Return whether the values fill one piece of memory, in rows or in channels_last order."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _inside(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, grid: Grid) -> Tensor:
    """Return `grad` where `x` is inside the grid's real range, else 0."""
    shape = broadcast_shape(x, axis)
    low = ((grid.low - zero_point) * scale).view(shape)
    high = ((grid.high - zero_point) * scale).view(shape)
    if x.device.type != "cpu" or axis is not None or torch.compiler.is_compiling():
        return grad * ((x >= low) & (x <= high))
    # One pass instead of four. Its limits are numbers, which would synchronise a GPU, and exclude the borders.
    infinity = torch.tensor(torch.inf)
    low, high = torch.nextafter(low, -infinity), torch.nextafter(high, infinity)
    return torch.ops.aten.hardtanh_backward(grad, x, low.item(), high.item())
