"""Calibration: show a student some images, then fix the ranges of its activations."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import activation_sites
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.ranges import ActivationObserver
from clusterq_common.runtime.distributed import Ranks
from clusterq_common.runtime.errors import ClusterqError


def calibrate(student: nn.Module, batches: Iterable[Tensor], config: QuantConfig, *, seed: int = 0) -> None:
    """Set the range of every activation quantizer from `batches` of images, (N, C, H, W) float32.

    The student runs in eval mode and float32, with quantized weights and float activations: a range is then what the
    activation wants, not what the layers before it have already cut off. Several processes are given the same batches, share
    them out, and find the same ranges as one would.

    Raises:
        ClusterqError: no batch was given, or an activation is not finite.
    """
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
        found = observers[name].range(quantizer.bits, config)
        if not bool(torch.isfinite(torch.cat([found.low, found.high])).all()):
            raise ClusterqError(f"calibration: the values at {name} are not finite; check the weights and the shards.")
        quantizer.set_range(*found)


@contextmanager
def float_activations(student: nn.Module) -> Iterator[None]:
    """Let activations pass as they are; weights stay quantized."""
    sites = activation_sites(student)
    with _watched(sites, dict.fromkeys(sites, _ignore)):
        yield


def _ignore(_: Tensor) -> None:
    """Nobody watches."""


@contextmanager
def _watched(sites: dict[str, FakeQuantizer], watchers: dict[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Let the quantizers pass their input through unchanged while the watchers see it."""
    try:
        for name, quantizer in sites.items():
            quantizer.observer = watchers[name]
        yield
    finally:
        for quantizer in sites.values():
            quantizer.observer = None
