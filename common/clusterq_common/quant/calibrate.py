"""Calibration: setting the ranges of a student's activations from some images."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clusterq_common.device.distributed import Ranks
from clusterq_common.errors import ClusterqError
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import activation_sites, quantized_as
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.ranges import ActivationObserver


def calibrate(student: nn.Module, batches: Iterable[Tensor], config: QuantConfig | None = None, *, seed: int = 0) -> None:
    """Set the range of every activation quantizer of a student, in place, from `batches` of images, (N, C, H, W) float32.

    The student runs in eval mode and float32, with quantized weights and float activations. So a range covers the activation
    itself and is not affected by clipping in earlier layers. Several processes are given the same batches, divide them, and find
    the same ranges as one process would.

    Args:
        student: a student made by `convert`.
        batches: images, normalised as for the teacher.
        config: settings of the ranges; those of `convert` if left out.
        seed: seed of the random sample of values where there are too many to keep.

    Raises:
        ClusterqError: no batch was given, an activation is not finite, or the student was not made by `convert`.

    Examples:
        >>> import torch
        >>> import clusterq as cq
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
        >>> student = cq.convert(net, cq.QuantConfig(bits="w4a4"), torch.zeros(1, 1, 8, 8))
        >>> cq.calibrate(student, [torch.randn(16, 1, 8, 8)])
        >>> student(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 4, 6, 6])
    """
    config = quantized_as(student) if config is None else config
    sites = activation_sites(student)
    if not sites:
        return
    ranks = Ranks.current()
    observers = {name: ActivationObserver(seed + number) for number, name in enumerate(sites)}
    device, dtype = next(student.parameters()).device, next(student.parameters()).dtype
    training = student.training
    student.eval()
    seen = 0
    with (
        _watched(sites, {name: observer.update for name, observer in observers.items()}),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        for number, batch in enumerate(batches):
            seen += len(batch)
            if number % ranks.world == ranks.rank:
                for observer in observers.values():
                    observer.batch = number
                student(batch.to(device, dtype))
    student.train(training)
    for observer in observers.values():
        observer.merge(ranks)
    if not seen:
        raise ClusterqError("calibration saw no image; give at least one synthetic image (a shard set with samples).")
    for name, quantizer in sites.items():
        value_range = observers[name].range(quantizer.bits, config)
        if not bool(torch.isfinite(torch.cat([value_range.low, value_range.high])).all()):
            raise ClusterqError(f"calibration: the values at {name} are not finite; check the weights and the shards.")
        quantizer.set_range(*value_range)


@contextmanager
def float_activations(student: nn.Module) -> Iterator[None]:
    """Disable the quantization of activations within the block; weights stay quantized."""
    sites = activation_sites(student)
    with _watched(sites, dict.fromkeys(sites, _ignore)):
        yield


def _ignore(_: Tensor) -> None:
    """Ignore an activation; an observer that does nothing."""


@contextmanager
def _watched(sites: dict[str, FakeQuantizer], watchers: dict[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Let the quantizers pass their input unchanged within the block, and show it to the watchers."""
    try:
        for name, quantizer in sites.items():
            quantizer.observer = watchers[name]
        yield
    finally:
        for quantizer in sites.values():
            quantizer.observer = None
