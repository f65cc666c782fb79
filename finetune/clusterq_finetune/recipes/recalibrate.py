"""Recalibration of BatchNorm statistics in the quantized student."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clusterq_common.device.distributed import Ranks
from clusterq_common.device.reduce import sum_across
from clusterq_common.taps import batchnorm_layers


@torch.no_grad()
def recalibrate_batchnorm(student: nn.Module, batches: Iterable[Tensor], device: torch.device) -> None:
    """Replace each BatchNorm layer's running mean and variance by the mean over `batches` of its input's statistics.

    Meanwhile every layer normalises by the batch, as in training, so that deep layers see the output of recalibrated ones before
    them. Several processes are given the same batches and divide them among themselves.

    Args:
        student: calibrated; in eval mode afterwards.
        batches: images (N, C, H, W) float32.
        device: device of the student.
    """
    ranks = Ranks.current()
    layers = batchnorm_layers(student).values()
    momenta = [layer.momentum for layer in layers]
    student.eval()
    for layer in layers:
        layer.train()
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
    seen = 0
    for number, batch in enumerate(batches):
        if number % ranks.world == ranks.rank:
            student(batch.to(device))
            seen += 1
    total = sum_across(torch.tensor(float(seen), device=device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.eval()
        layer.momentum = momentum
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.fill_(int(total))
        for statistics in (layer.running_mean, layer.running_var):
            assert statistics is not None
            statistics.copy_(sum_across(statistics * seen) / total)
