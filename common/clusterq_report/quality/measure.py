"""Measurement of a set of shards, of pure noise and, if available, of real images, all in the same way."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from clusterq_common.run.seeding import stream
from clusterq_common.shards.facts import teacher_facts
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.spec import shown_arch
from clusterq_report.quality.collect import Networks, collect
from clusterq_report.quality.config import QualityConfig
from clusterq_report.quality.figures import Measured
from clusterq_report.quality.findings import Frechet, Quality, RealImages
from clusterq_report.quality.frechet import Gaussian, squared_frechet_distance
from clusterq_report.quality.sample import Batch, Ints, noise, sampled, stored

SHOWN_CONTRADICTED = 16


@dataclass(frozen=True)
class Real:
    """Real images supplied by the caller: name and layout to show, number of images, number of drawn ones, and their batches."""

    name: str
    layout: str
    images: int
    drawn: int
    batches: Iterator[Batch]


def choose(shards: ShardSet, config: QualityConfig) -> Ints:
    """Return the numbers of the split's images to measure.

    Raises:
        ClusterqError: there is no such split, or a label is invalid.
    """
    reader = shards.split(config.split)
    labels = np.array([reader.label(number) for number in range(len(reader))], np.int64)
    return sampled(labels, config.images, config.seed)


def measure(
    shards: ShardSet,
    numbers: Ints,
    config: QualityConfig,
    networks: Networks,
    real: Real | None,
    advance: Callable[[int], None] = lambda _: None,
) -> Quality:
    """Measure all figures of a quality report.

    Args:
        shards: the set.
        numbers: result of `choose`, at least two images.
        config: settings.
        networks: the teacher that the set was made for, and optionally another classifier of the same images and classes.
        real: real images, ideally as many as are measured of the set, since nearest neighbours get nearer with more images.
        advance: called with the number of images of each batch: of the set, of equally many of noise, and of the real ones.

    Raises:
        ClusterqError: an image cannot be read.
    """
    manifest, spec = shards.manifest, networks.teacher.spec
    reader, split = shards.split(config.split), manifest.splits[config.split]

    of_set = Measured(collect(stored(reader, numbers, spec), networks, advance), spec.num_classes, config.seed)
    empty = noise(of_set.collected.labels, spec, config.seed)
    sources = {"set": of_set, "noise": Measured(collect(empty, networks, advance), spec.num_classes, config.seed)}
    if real is not None:
        sources["real"] = Measured(collect(real.batches, networks, advance), spec.num_classes, config.seed)

    figures = {name: source.summary() for name, source in sources.items()}
    for name, distance in _frechet_distances(sources, config.seed).items():
        figures[name] = figures[name].model_copy(update={"frechet": distance})

    made, listed = manifest.generation, numbers.tolist()
    other = networks.other
    return Quality(
        shards=manifest.digest,
        split=config.split,
        of_images=len(reader),
        dropped=None if made is None else not made.keep_misclassified,
        seed=config.seed,
        teacher=teacher_facts(networks.teacher).arch,
        teacher_digest=networks.teacher.digest,
        other=None if other is None else shown_arch(other.config.arch),
        other_digest=None if other is None else other.digest,
        names=manifest.class_names,
        missing=[label for label, count in enumerate(split.per_class) if not count],
        real=None if real is None else _about(real, figures["real"].images),
        sources=figures,
        per_class=of_set.by_class(),
        pairs=of_set.pairs(listed),
        contradicted=of_set.contradicted(listed, SHOWN_CONTRADICTED),
    )


def _about(real: Real, seen: int) -> RealImages:
    return RealImages(name=real.name, layout=real.layout, images=real.images, unreadable=real.drawn - seen)


def _frechet_distances(sources: dict[str, Measured], seed: int) -> dict[str, Frechet | None]:
    """Return each source's Frechet distance to the real images, for these between their halves; nothing without real images."""
    if "real" not in sources:
        return {}
    whole = Gaussian.of(sources["real"].collected.features)
    return {
        name: _halves(source, seed, whole) if name == "real" else _frechet(Gaussian.of(source.collected.features), whole, whole)
        for name, source in sources.items()
    }


def _frechet(features: Gaussian, other: Gaussian, real: Gaussian) -> Frechet:
    squared = squared_frechet_distance(features, other)
    return Frechet(squared=squared, relative=squared / real.variance if real.variance > 0 else None)


def _halves(real: Measured, seed: int, whole: Gaussian) -> Frechet | None:
    """Return the Frechet distance between two halves of the real images; None for fewer than four."""
    features = real.collected.features
    order = torch.randperm(len(features), generator=stream(seed, "quality halves"))
    first, second = order.chunk(2)
    return _frechet(Gaussian.of(features[first]), Gaussian.of(features[second]), whole) if len(features) >= 4 else None
