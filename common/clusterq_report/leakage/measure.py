"""Comparison of a set, and of held-out images in its place, with training and held-out images."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.intervals import holm
from clusterq_common.run.seeding import stream
from clusterq_report.leakage.arrangements import Arrangements
from clusterq_report.leakage.beside import Comparison, Real, Search, search_space
from clusterq_report.leakage.config import LeakageConfig
from clusterq_report.leakage.findings import MOVED, BesideControl, NearCopies, SpaceFigures
from clusterq_report.leakage.space_figures import figures_of
from clusterq_report.leakage.spaces import Images, Space


@dataclass(frozen=True)
class Compared:
    """Result of `compare`; see `Leakage`."""

    spaces: list[SpaceFigures]
    control: int
    equal: int
    draws: int
    in_both: int
    alone: int


def compare(
    made: Images,
    real: Real,
    spaces: list[Space],
    classes: int,
    config: LeakageConfig,
    *,
    search: Search | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Compared:
    """Measure all figures that compare images.

    Args:
        made: the set's images.
        real: training and held-out images.
        spaces: spaces in which they are compared.
        classes: K.
        config: settings.
        search: finds neighbours; another one may know them already.
        advance: called with 1 after each space, and with the number of assignments after some.

    Raises:
        ClusterqError: too few held-out images, or of other classes than the training images.
    """
    control, rest = split_control(real.held, config.calibration, config.seed)
    without_control = replace(real, held=rest)
    arrangements = _arrangements(without_control, config)
    if not len(control) or not int(arrangements.equal.sum()):
        raise ClusterqError(
            f"{len(real.held)} held-out images do not leave {'one as a control' if not len(control) else 'one of a class that has training images'}, "
            "expected at least two of each class; take more of them, of the same classes.",
            setting="holdout",
        )
    beside: dict[str, tuple[Comparison, Comparison]] = {}
    for space in spaces:
        pool = torch.cat([space.vectors(real.train), space.vectors(rest)]) if space.name != MOVED else None
        of_set, of_control = (
            Comparison.begin(space, images, without_control, pool, arrangements, classes, search or search_space)
            for images in (made, control)
        )
        beside[space.name] = of_set, of_control
        advance(1)
    for places in arrangements:
        for pair in beside.values():
            for side in pair:
                side.add(places)
        advance(len(places))
    figures = [figures_of(space, made, without_control, beside[space.name], config) for space in spaces]
    twice = _in_both(real.train.small.flatten(1), real.held.small.flatten(1))
    return Compared(
        spaces=_corrected(figures),
        control=len(control),
        equal=int(arrangements.equal.sum()),
        draws=len(arrangements.draws),
        in_both=twice,
        alone=int(((arrangements.of_train > 0) != (arrangements.of_held > 0)).sum()),
    )


def split_control(held: Images, most: int, seed: int) -> tuple[Images, Images]:
    """Return control and remaining held-out images: of each class its share, at most half of it.

    Args:
        held: all held-out images.
        most: largest number of control images.
        seed: seed of the draw.
    """
    chosen = torch.zeros(len(held), dtype=torch.bool)
    share = min(0.5, most / len(held))
    for label in held.labels.unique().tolist():
        own = (held.labels == label).nonzero()[:, 0]
        order = torch.randperm(len(own), generator=stream(seed, "leakage control", label))
        chosen[own[order[: int(share * len(own))]]] = True
    places = torch.arange(len(held))
    return held.take(places[chosen]), held.take(places[~chosen])


def _arrangements(real: Real, config: LeakageConfig) -> Arrangements:
    labels = torch.cat([real.train.labels, real.held.labels])
    trained = torch.arange(len(labels)) < len(real.train)
    return Arrangements(labels, trained, config.permutations, config.subsamples, config.seed)


def _corrected(figures: list[SpaceFigures]) -> list[SpaceFigures]:
    """Return the figures with p-values corrected for the number of tests (Holm, 1979)."""
    tests = [(space, key) for space in figures for key in ("nearness", "copies", "means") if getattr(space, key) is not None]
    corrected = holm([getattr(space, key).p for space, key in tests])
    changes: dict[str, dict[str, BesideControl | NearCopies]] = {space.name: {} for space in figures}
    for (space, key), value in zip(tests, corrected, strict=True):
        changes[space.name][key] = getattr(space, key).model_copy(update={"corrected": value})
    return [space.model_copy(update=changes[space.name]) for space in figures]


def _in_both(train: Tensor, held: Tensor) -> int:
    """Return how many held-out images have the same pixels as a training image, (N, P) uint8 each."""
    known = {row.numpy().tobytes() for row in train}
    return sum(row.numpy().tobytes() in known for row in held)
