"""Plain versions of the steps, as the field's released code writes them, for comparison. Correct, and slow on purpose.

They have class-wise losses in a Python loop over samples and layers, statistics by hooks that reduce each BatchNorm input again,
fake-quantization as separate differentiable operations, upsampling before convolution, contiguous memory and float32.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterq_common.capture import capture
from clusterq_common.distill.kl import distillation_kl
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.run.seeding import stream
from clusterq_common.taps import batchnorm_layers
from clusterq_gen.config import MethodConfig
from clusterq_gen.networks.upsampled_conv import UpsampledConv2d
from clusterq_gen.training.centroids import Centroids
from clusterq_gen.training.latent import LatentBatch
from clusterq_gen.training.state import Training


class PlainFakeQuantizer(nn.Module):
    """Fake-quantizer of separate operations: divide, round, clamp, multiply, each recorded by autograd."""

    def __init__(self, quantizer: FakeQuantizer) -> None:
        super().__init__()
        self.low, self.high, self.axis = quantizer.grid.low, quantizer.grid.high, quantizer.axis
        self.scale = copy.deepcopy(quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point.clone())

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * x.dim() if self.axis is None else [-1, *[1] * (x.dim() - 1)]
        scale, zero_point = self.scale.view(shape), self.zero_point.view(shape)
        scaled = x / scale + zero_point
        rounded = (scaled.round() - scaled).detach() + scaled
        return (torch.clamp(rounded, self.low, self.high) - zero_point) * scale


def plain_student(student: nn.Module) -> nn.Module:
    """Return a contiguous copy with plain fake-quantizers."""
    plain = copy.deepcopy(student)
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FakeQuantizer):
                module.register_module(name, PlainFakeQuantizer(child))
    return plain.to(memory_format=torch.contiguous_format)


class PlainUpsampledConv2d(nn.Conv2d):
    """Upsampling followed by a convolution, as two operations."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2))


def plain_generator(generator: nn.Module) -> nn.Module:
    """Return a contiguous copy that upsamples before it convolves."""
    plain = copy.deepcopy(generator)
    for module in plain.modules():
        if isinstance(module, UpsampledConv2d):
            module.__class__ = PlainUpsampledConv2d
    return plain.to(memory_format=torch.contiguous_format)


@contextmanager
def batchnorm_inputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the inputs of all BatchNorm layers in the latest forward pass, within the block."""
    inputs: dict[str, Tensor] = {}
    with capture(batchnorm_layers(model), before=lambda call: inputs.__setitem__(call.name, call.args[0])):
        yield inputs


def plain_class_losses(
    inputs: dict[str, Tensor], labels: Tensor, keep: Tensor, centroids: Centroids, method: MethodConfig, random: torch.Generator
) -> Tensor:
    """Compute FDA and DE sample by sample and layer by layer, and update the centroids likewise."""
    fda, de = torch.zeros(()), torch.zeros(())
    names, channels = centroids.layers.names, centroids.layers.channels
    for sample in range(len(labels)):
        if not keep[sample]:
            continue
        mean_row, std_row = centroids.mean[labels[sample]], centroids.std[labels[sample]]
        at = 0
        for name, width in zip(names, channels, strict=True):
            x = inputs[name][sample]
            mean = x.mean((1, 2))
            std = torch.sqrt(x.var((1, 2), unbiased=False) + centroids.layers.eps[at : at + width])
            mean_centroid, std_centroid = mean_row[at : at + width], std_row[at : at + width]
            mean_target, std_target = mean_centroid.clone(), std_centroid.clone()
            fda = fda + F.mse_loss(mean, mean_target) + F.mse_loss(std, std_target)
            noisy_mean = mean_target + method.de_mean_std * torch.randn(width, generator=random).to(mean_target)
            noisy_std = std_target + method.de_std_std * torch.randn(width, generator=random).to(std_target)
            de = de + F.mse_loss(mean, noisy_mean) + F.mse_loss(std, noisy_std)
            with torch.no_grad():
                mean_centroid.lerp_(mean, method.ema_rate)
                std_centroid.lerp_(std, method.ema_rate)
            at += width
    count = max(1, int(keep.sum())) * len(names)
    return (method.alpha_fda * fda + method.alpha_de * de) / count


class PlainTraining:
    """A training after warm-up with a plain step and with networks of its own."""

    def __init__(self, run: Training) -> None:
        assert run.student is not None
        self.run = run
        self.teacher = copy.deepcopy(run.teacher.model).to(memory_format=torch.contiguous_format)
        self.generator = plain_generator(run.generator)
        self.student = plain_student(run.student)
        self.centroids = copy.deepcopy(run.centroids)
        train = run.config.train
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=train.lr, betas=(0.5, 0.999), foreach=False)
        self.student_optimizer = torch.optim.SGD(
            self.student.parameters(), lr=train.student_lr, momentum=0.9, nesterov=True, weight_decay=1e-4, foreach=False
        )
        self.stored = run.stored_statistics()

    def _latent(self) -> LatentBatch:
        self.run.draws.begin(self.run.step)
        return self.run.inputs()

    def step(self) -> None:
        """Take one step of the generator and one of the student."""
        method, latent = self.run.config.method, self._latent()
        with batchnorm_inputs(self.teacher) as inputs:
            images = self.generator(latent.z, latent.classes)
            teacher_logits = self.teacher(images)
        loss = F.cross_entropy(teacher_logits, latent.labels)
        matching = torch.zeros(())
        for name, x in inputs.items():
            matching = matching + F.mse_loss(x.mean((0, 2, 3)), self.stored[name].mean)
            matching = matching + F.mse_loss(x.var((0, 2, 3), unbiased=False), self.stored[name].var)
        loss = loss + method.alpha_bns * matching / len(inputs)
        if self.centroids is not None:
            keep = teacher_logits.argmax(1) == latent.labels
            random = stream(0, "plain", self.run.step)
            loss = loss + plain_class_losses(inputs, latent.labels, keep, self.centroids, method, random)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

        logits = self.student(images.detach())
        loss = F.cross_entropy(logits, latent.labels)
        loss = loss + method.kl_weight * distillation_kl(teacher_logits.detach(), logits, method.temperature)
        self.student_optimizer.zero_grad()
        loss.backward()
        self.student_optimizer.step()
        self.run.step += 1
