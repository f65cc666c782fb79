"""BatchNorm statistics moved so that quantization neither shifts nor stretches what a channel gives."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clusterq_common.runtime.distributed import Ranks
from clusterq_common.runtime.precision import at_least_float32
from clusterq_common.runtime.reduce import sum_across
from clusterq_common.taps import batchnorm_layers


@torch.no_grad()
def correct_batchnorm(
    student: nn.Module, teacher: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], ranks: Ranks | None = None
) -> None:
    """Give each BatchNorm layer the statistics with which its output has, in every channel, the teacher's mean and spread.

    Rounded weights move the mean of a convolution's output, most of all in depthwise ones, whose few weights meet inputs that are
    all positive: empirical bias correction (Nagel et al., 2019, section 4.2), here of the variance, too. With `m` and `v` mean and
    variance of the layer's input on these images and `mu`, `var` what the teacher's layer has stored,

        r = (v_student + eps) / (v_teacher + eps)
        running var = (var + eps) r - eps,  running mean = m_student - (m_teacher - mu) sqrt(r).

    Images that are unlike the training data do little harm, since both networks see the same. Each layer is corrected by the
    batch before the next one sees its output; what stays is found from the mean of the moments over all batches. A layer that does
    not run exactly once in a forward pass keeps what it has.

    Args:
        student: quantized; in eval mode, as the teacher.
        teacher: the float network, or the part of it that `student` is a part of, with the same module names.
        batches: inputs of the teacher and of the student, (N, ...) float32, on their device.
        ranks: the processes that share the batches out; if left out, each goes through all of them.
    """
    own = batchnorm_layers(student)
    layers = [_Layer(own[name], layer) for name, layer in batchnorm_layers(teacher).items()]
    handles = [handle for layer in layers for handle in layer.watch()]
    try:
        for number, (wanted, given) in enumerate(batches):
            if ranks is None or number % ranks.world == ranks.rank:
                for layer in layers:
                    layer.begin(len(given))
                teacher(wanted)
                student(given)
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        layer.settle(shared=ranks is not None)


@torch.no_grad()
def restore_batchnorm(student: nn.Module, teacher: nn.Module) -> None:
    """Give each BatchNorm layer the teacher's statistics again."""
    own = batchnorm_layers(student)
    for name, layer in batchnorm_layers(teacher).items():
        for statistics in ("running_mean", "running_var"):
            getattr(own[name], statistics).copy_(getattr(layer, statistics))


class _Layer:
    """A BatchNorm layer of the student beside the teacher's."""

    def __init__(self, student: _BatchNorm, teacher: _BatchNorm) -> None:
        assert teacher.running_mean is not None
        assert teacher.running_var is not None
        self.student, self.teacher = student, teacher
        self.mean, self.std = at_least_float32(teacher.running_mean), at_least_float32(teacher.running_var + teacher.eps).sqrt()
        self.wanted: list[Tensor] = []
        self.images = 0
        # Moments in the teacher and in the student times the images that they are from, (4, C), and the images.
        self.sums = torch.zeros(4, len(self.mean), dtype=torch.float64, device=self.mean.device)
        self.seen = 0

    def watch(self) -> list[Any]:
        return [
            self.teacher.register_forward_pre_hook(self._in_teacher),
            self.student.register_forward_pre_hook(self._in_student),
        ]

    def begin(self, images: int) -> None:
        """The next batch."""
        self.wanted, self.images = [], images

    def _in_teacher(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.wanted.append(_moments(args[0]))

    def _in_student(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(self.wanted) != 1:
            return
        found = torch.cat([self.wanted[0], _moments(args[0])])
        self.sums += found * self.images
        self.seen += self.images
        self._correct(found)

    def settle(self, *, shared: bool) -> None:
        """What all batches say."""
        seen = torch.tensor(float(self.seen), dtype=torch.float64, device=self.sums.device)
        sums = self.sums
        if shared:
            seen, sums = sum_across(seen), sum_across(sums)
        if float(seen):
            self._correct((sums / seen).to(self.mean.dtype))

    def _correct(self, moments: Tensor) -> None:
        teacher_mean, teacher_var, mean, var = moments
        eps = self.student.eps
        stretch = ((var + eps) / (teacher_var + eps)).sqrt()
        assert self.student.running_mean is not None
        assert self.student.running_var is not None
        self.student.running_mean.copy_(mean - (teacher_mean - self.mean) * stretch)
        self.student.running_var.copy_(((self.std * stretch).square() - eps).clamp_min(0))


def _moments(x: Tensor) -> Tensor:
    """Mean and biased variance of each channel over images and positions, (2, C)."""
    var, mean = torch.var_mean(at_least_float32(x), (0, *range(2, x.dim())), correction=0)
    return torch.stack([mean, var])
