"""Correction of BatchNorm statistics and biases, so that quantization changes neither mean nor spread of a channel."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clusterq_common.capture import Call, capture
from clusterq_common.device.distributed import Ranks
from clusterq_common.device.reduce import sum_across
from clusterq_common.device.setup import at_least_float32
from clusterq_common.taps import batchnorm_layers


@torch.no_grad()
def correct_channels(
    student: nn.Module, teacher: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], ranks: Ranks | None = None
) -> None:
    """Give the student's channels the teacher's mean and spread on these images, where a BatchNorm layer or a bias allows it.

    Rounded weights shift the mean of a convolution's output, most of all in depthwise ones, which have few weights and only
    positive inputs. This is empirical bias correction (Nagel et al., 2019, section 4.2), extended to the variance. Let `m` and `v`
    be mean and variance of a BatchNorm layer's input on these images, and `mu`, `var` the stored statistics of the teacher's layer:

        r = (v_student + eps) / (v_teacher + eps)
        running var = (var + eps) r - eps,  running mean = m_student - (m_teacher - mu) sqrt(r).

    A convolution or linear layer with a bias (the classifier, those of squeeze-and-excitation) gets, with `m` the mean of its
    output,

        bias = bias - m_student + m_teacher.

    Images unlike the training data do little harm, since both networks see the same ones. Each layer is corrected on the batch
    before the next layer sees its output. The final correction uses the mean of the moments over all batches. A layer that does
    not run exactly once in a forward pass is left unchanged.

    Args:
        student: quantized; in eval mode, as the teacher.
        teacher: the float network, or the part of it that `student` is a part of, with the same module names.
        batches: inputs of the teacher and of the student, (N, ...) float32, on their device.
        ranks: the processes that divide the batches among them; if left out, each goes through all of them.
    """
    own = batchnorm_layers(student)
    sites: list[_Site] = [_Norm(own[name], layer) for name, layer in batchnorm_layers(teacher).items()]
    sites += [_Bias(own_layer, layer) for own_layer, layer in _with_bias(student, teacher)]
    with ExitStack() as watched:
        for site in sites:
            watched.enter_context(site.watch())
        for number, (teacher_input, student_input) in enumerate(batches):
            if ranks is None or number % ranks.world == ranks.rank:
                for site in sites:
                    site.begin(len(student_input))
                teacher(teacher_input)
                student(student_input)
    for site in sites:
        site.settle(shared=ranks is not None)


@torch.no_grad()
def restore_channels(student: nn.Module, teacher: nn.Module) -> None:
    """Restore the teacher's statistics in each BatchNorm layer, and the teacher's biases."""
    own = batchnorm_layers(student)
    for name, layer in batchnorm_layers(teacher).items():
        for statistics in ("running_mean", "running_var"):
            getattr(own[name], statistics).copy_(getattr(layer, statistics))
    for twin, original in _with_bias(student, teacher):
        assert twin.bias is not None
        assert original.bias is not None
        twin.bias.copy_(original.bias)


class _Site(ABC):
    """A layer of the student and its counterpart in the teacher, with the moments of their activations.

    Args:
        moments: number of moments of a channel in one network.
        like: (C,), a tensor of the layer; it gives the number of channels and the device.
    """

    def __init__(self, moments: int, like: Tensor) -> None:
        self.teacher_moments: list[Tensor] = []
        self.images = 0
        # Sums of the teacher's and the student's moments, weighted by images, and the number of images.
        self.sums = torch.zeros(2 * moments, len(like), dtype=torch.float64, device=like.device)
        self.seen = 0

    def begin(self, images: int) -> None:
        """Start the next batch."""
        self.teacher_moments, self.images = [], images

    def settle(self, *, shared: bool) -> None:
        """Apply the correction from the mean over all batches."""
        seen = torch.tensor(float(self.seen), dtype=torch.float64, device=self.sums.device)
        sums = self.sums
        if shared:
            seen, sums = sum_across(seen), sum_across(sums)
        if float(seen):
            self.correct((sums / seen).float())

    def take(self, student_moments: Tensor) -> bool:
        """Correct with the student's moments in this batch, (moments, C), unless the teacher's layer did not run exactly once.

        Returns:
            Whether the layer was corrected.
        """
        if len(self.teacher_moments) != 1:
            return False
        moments = torch.cat([self.teacher_moments[0], student_moments])
        self.sums += moments * self.images
        self.seen += self.images
        self.correct(moments)
        return True

    @abstractmethod
    def watch(self) -> AbstractContextManager[None]:
        """Take the moments of both layers, and correct the student's, within the block."""

    @abstractmethod
    def correct(self, moments: Tensor) -> None:
        """Adjust the student's layer to cancel the difference; moments: (2 moments, C), the teacher's first."""


class _Norm(_Site):
    """Correction of a BatchNorm layer."""

    def __init__(self, student: _BatchNorm, teacher: _BatchNorm) -> None:
        assert teacher.running_mean is not None
        assert teacher.running_var is not None
        super().__init__(2, teacher.running_mean)
        self.student, self.teacher = student, teacher
        self.mean, self.std = at_least_float32(teacher.running_mean), at_least_float32(teacher.running_var + teacher.eps).sqrt()

    @contextmanager
    def watch(self) -> Iterator[None]:
        with (
            capture(
                {"teacher": self.teacher}, before=lambda call: self.teacher_moments.append(_mean_and_variance(call.args[0]))
            ),
            capture({"student": self.student}, before=self._in_student),
        ):
            yield

    def _in_student(self, call: Call) -> None:
        self.take(_mean_and_variance(call.args[0]))

    def correct(self, moments: Tensor) -> None:
        teacher_mean, teacher_var, mean, var = moments
        eps = self.student.eps
        stretch = ((var + eps) / (teacher_var + eps)).sqrt()
        assert self.student.running_mean is not None
        assert self.student.running_var is not None
        self.student.running_mean.copy_(mean - (teacher_mean - self.mean) * stretch)
        self.student.running_var.copy_(((self.std * stretch).square() - eps).clamp_min(0))


class _Bias(_Site):
    """Correction of a layer with a bias."""

    def __init__(self, student: nn.Conv2d | nn.Linear, teacher: nn.Module) -> None:
        assert student.bias is not None
        super().__init__(1, student.bias)
        self.student, self.teacher, self.bias = student, teacher, student.bias

    @contextmanager
    def watch(self) -> Iterator[None]:
        with (
            capture({"teacher": self.teacher}, after=lambda _, output: self.teacher_moments.append(self._mean(output))),
            capture({"student": self.student}, after=self._behind_student),
        ):
            yield

    def _behind_student(self, _: Call, output: Tensor) -> Tensor:
        before = at_least_float32(self.bias).clone()
        if self.take(self._mean(output) - before):
            moved = (at_least_float32(self.bias) - before).to(output.dtype)
            output = output + (moved if isinstance(self.student, nn.Linear) else moved.view(-1, 1, 1))
        return output

    def _mean(self, output: Tensor) -> Tensor:
        """Return the channels' mean output, (1, C)."""
        axis = -1 if isinstance(self.student, nn.Linear) else 1
        return at_least_float32(output).movedim(axis, -1).flatten(0, -2).mean(0, keepdim=True)

    def correct(self, moments: Tensor) -> None:
        teacher_mean, mean_without_bias = moments
        self.bias.copy_(teacher_mean - mean_without_bias)


def _with_bias(student: nn.Module, teacher: nn.Module) -> list[tuple[nn.Conv2d | nn.Linear, nn.Conv2d | nn.Linear]]:
    """Return the convolutions and linear layers that have a bias, as pairs of the student's and the teacher's."""
    own = dict(student.named_modules())
    pairs = []
    for name, layer in teacher.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            twin = own[name]
            assert isinstance(twin, nn.Conv2d | nn.Linear)
            pairs.append((twin, layer))
    return pairs


def _mean_and_variance(x: Tensor) -> Tensor:
    """Return mean and biased variance of each channel over images and positions, (2, C)."""
    var, mean = torch.var_mean(at_least_float32(x), (0, *range(2, x.dim())), correction=0)
    return torch.stack([mean, var])
