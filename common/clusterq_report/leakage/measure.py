"""Comparison of a set, and of held-out images in its place, with training and held-out images."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.intervals import Z, holm, wilson_interval
from clusterq_common.run.seeding import stream
from clusterq_report.leakage.arrangements import Arrangements, corrected_for_many, p_value
from clusterq_report.leakage.config import LeakageConfig
from clusterq_report.leakage.copies import calibrated, ratios
from clusterq_report.leakage.findings import (
    MOVED,
    RATIO_BINS,
    RATIO_RANGE,
    BesideControl,
    ClassFigures,
    Interval,
    NearCopies,
    Pair,
    SpaceFigures,
)
from clusterq_report.leakage.means import MeanShift, MeanSide
from clusterq_report.leakage.nearness import NearestKind, Nearness
from clusterq_report.leakage.neighbours import Neighbours, nearest
from clusterq_report.leakage.spaces import Images, Space

MOST_PAIRS = 12
Namer = Callable[[int], str]
Search = Callable[[Space, Images, Images, int], Neighbours]


@dataclass(frozen=True)
class Real:
    """Training and held-out images.

    Attributes:
        train, held: the images.
        train_name, held_name: name of an image by its number in the source.
    """

    train: Images
    held: Images
    train_name: Namer = str
    held_name: Namer = str


@dataclass(frozen=True)
class Compared:
    """Result of `compare`; see `Leakage`."""

    spaces: list[SpaceFigures]
    control: int
    equal: int
    draws: int
    in_both: int
    alone: int


def search_space(space: Space, images: Images, candidates: Images, most: int) -> Neighbours:
    """Return the nearest candidates of each image in a space."""
    return nearest(space.versions(images), space.vectors(candidates), most, whole=space.whole)


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
    beside: dict[str, tuple[_Beside, _Beside]] = {}
    for space in spaces:
        pool = torch.cat([space.vectors(real.train), space.vectors(rest)]) if space.name != MOVED else None
        of_set, of_control = (
            _Beside.begin(space, images, without_control, pool, arrangements, classes, search or search_space)
            for images in (made, control)
        )
        beside[space.name] = of_set, of_control
        advance(1)
    for places in arrangements:
        for pair in beside.values():
            for side in pair:
                side.add(places)
        advance(len(places))
    figures = [_figures(space, made, without_control, beside[space.name], config) for space in spaces]
    twice = _in_both(real.train.small.flatten(1), real.held.small.flatten(1))
    return Compared(
        spaces=_corrected(figures),
        control=len(control),
        equal=int(arrangements.equal.sum()),
        draws=len(arrangements.draws),
        in_both=twice,
        alone=int(((arrangements.of_train > 0) != (arrangements.of_held > 0)).sum()),
    )


def _arrangements(real: Real, config: LeakageConfig) -> Arrangements:
    labels = torch.cat([real.train.labels, real.held.labels])
    trained = torch.arange(len(labels)) < len(real.train)
    return Arrangements(labels, trained, config.permutations, config.subsamples, config.seed)


@dataclass(frozen=True)
class _Beside:
    """A set, or the control, beside the real images in one space.

    Attributes:
        nearest: nearest training and held-out images of each image.
        kinds: counts how often the nearest real image is a training image, by arrangement.
        means: compares the classes' means; None for spaces without means.
    """

    nearest: tuple[Neighbours, Neighbours]
    kinds: NearestKind
    means: MeanSide | None

    @classmethod
    def begin(
        cls,
        space: Space,
        images: Images,
        real: Real,
        pool: Tensor | None,
        arrangements: Arrangements,
        classes: int,
        search: Search,
    ) -> "_Beside":
        """Search the nearest real images. No arrangement is counted yet.

        Args:
            space: where to search.
            images: the set or the control.
            real: training and held-out images.
            pool: vectors of both, or None for a space without means.
            arrangements: exchanges of training and held-out images.
            classes: K.
            search: finds neighbours.
        """
        # Of each kind as many as the list needs: the nearest of both together are among them.
        to_train, to_held = (search(space, images, part, arrangements.list_length) for part in (real.train, real.held))
        merged = _merged(to_train, to_held, len(real.train), arrangements.list_length)
        kinds = NearestKind(merged, images.labels, arrangements, classes)
        means = None if pool is None else MeanSide(space.vectors(images), images.labels, pool, arrangements)
        return cls((to_train, to_held), kinds, means)

    def add(self, places: Tensor) -> None:
        """Count some arrangements."""
        self.kinds.add(places)
        if self.means is not None:
            self.means.add(places)

    def mean_shift(self) -> MeanShift | None:
        return None if self.means is None else self.means.result()


def _merged(train: Neighbours, held: Neighbours, first_held: int, kept: int) -> Neighbours:
    """Return the nearest of both kinds, as many as each list has or would have; held-out images are numbered from `first_held`."""
    distances, order = torch.cat([train.distances, held.distances], 1).sort(dim=1, stable=True)
    numbers = torch.cat([train.numbers, held.numbers + first_held], 1).gather(1, order)
    return Neighbours(distances[:, :kept], numbers[:, :kept])


def _figures(
    space: Space,
    made: Images,
    real: Real,
    beside: tuple[_Beside, _Beside],
    config: LeakageConfig,
) -> SpaceFigures:
    """Return the figures of a space. Their p-values are not yet corrected for the number of tests."""
    of_set, of_control = beside
    own, control = (ratios(*_distances(side.nearest)) for side in beside)
    copies = _near_copies(of_set.nearest, of_control.nearest, config.false_alarms)
    nearness, means = of_set.kinds.result(), of_set.mean_shift()
    return SpaceFigures(
        name=space.name,
        shown=space.shown,
        nearness=_tested_nearness(nearness, of_control.kinds.result()),
        copies=copies,
        means=_tested_means(means, of_control.mean_shift()),
        mean_classes=0 if means is None else len(means.classes),
        mean_towards=0 if means is None else int((means.by_class[0] > 0).sum()),
        by_class=_by_class(made.labels, nearness, means),
        pairs=_pairs(space, made, real, of_set.nearest, own, copies.limit),
        ratios=_bins(own),
        control_ratios=_bins(control),
    )


def _near_copies(
    of_set: tuple[Neighbours, Neighbours], of_control: tuple[Neighbours, Neighbours], false_alarms: float
) -> NearCopies:
    """Count near-copies of training images, and of held-out images. The limits come from the control.

    Args:
        of_set, of_control: nearest training and held-out images.
        false_alarms: share of the control that may lie below a limit.
    """
    to_train, to_held = of_set
    images = len(to_train.distances)
    limit = calibrated(ratios(*_distances(of_control)), false_alarms)
    limit_of_held = calibrated(ratios(*reversed(_distances(of_control))), false_alarms)
    near = ratios(*_distances(of_set)) < limit.limit
    near_held = ratios(*reversed(_distances(of_set))) < limit_of_held.limit
    originals = len(to_train.numbers[near, 0].unique())
    return NearCopies(
        count=int(near.sum()),
        originals=originals,
        limit=limit.limit,
        rate=limit.rate,
        rate_interval=limit.interval,
        expected=limit.rate * images,
        p=limit.excess(originals, images),
        corrected=1.0,
        of_held=int(near_held.sum()),
        held_originals=len(to_held.numbers[near_held, 0].unique()),
        exact=int(((to_train.distances[:, 0] == 0) & (to_held.distances[:, 0] > 0)).sum()),
    )


def _tested_nearness(of_set: Nearness, of_control: Nearness) -> BesideControl:
    """Return the share of images whose nearest real image is a training image, with its test."""
    share, control = float(of_set.shares[0]), float(of_control.shares[0])
    return BesideControl(
        value=share,
        interval=share_interval(share, of_set.effective),
        p=p_value(of_set.shares),
        corrected=1.0,
        control=control,
        control_interval=share_interval(control, of_control.effective),
        control_p=_two_sided(of_control.shares),
    )


def _tested_means(of_set: MeanShift | None, of_control: MeanShift | None) -> BesideControl | None:
    """Return how far the classes' means lie towards training images, with its test; None for spaces without means."""
    if of_set is None or of_control is None:
        return None
    return BesideControl(
        value=float(of_set.overall[0]),
        interval=_around(of_set),
        p=p_value(of_set.overall),
        corrected=1.0,
        control=float(of_control.overall[0]),
        control_interval=_around(of_control),
        control_p=_two_sided(of_control.overall),
    )


def _distances(nearest: tuple[Neighbours, Neighbours]) -> tuple[Tensor, Tensor]:
    """Return the distances (N,) to the nearest training and held-out image."""
    train, held = nearest
    return train.distances[:, 0], held.distances[:, 0]


def _by_class(labels: Tensor, nearness: Nearness, means: MeanShift | None) -> list[ClassFigures]:
    there = labels.unique()
    corrected = corrected_for_many(nearness.by_class[:, there]).tolist()
    shifts = {}
    if means is not None:
        chances = corrected_for_many(means.by_class).tolist()
        shifts = {
            label: (value, chance)
            for label, value, chance in zip(means.classes.tolist(), means.by_class[0].tolist(), chances, strict=True)
        }
    figures = []
    for label, chance in zip(there.tolist(), corrected, strict=True):
        share = float(nearness.by_class[0, label])
        mean, mean_corrected = shifts.get(label, (None, None))
        figures.append(
            ClassFigures(
                label=label,
                images=int((labels == label).sum()),
                auc=share,
                auc_interval=share_interval(share, float(nearness.effective_by_class[label])),
                auc_corrected=chance,
                mean=mean,
                mean_corrected=mean_corrected,
            )
        )
    return figures


def _pairs(
    space: Space,
    made: Images,
    real: Real,
    searched: tuple[Neighbours, Neighbours],
    own: Tensor,
    limit: float,
) -> list[Pair]:
    """Return the pairs with the lowest ratios, each training image in one pair at most."""
    unit = space.vectors(real.train).shape[1] ** 0.5 if space.whole else 1.0
    to_train, to_held = searched
    pairs: list[Pair] = []
    seen: set[int] = set()
    for at in own.argsort(stable=True).tolist():
        place = int(to_train.numbers[at, 0])
        if place in seen:
            continue
        seen.add(place)
        train, held = int(real.train.numbers[place]), int(real.held.numbers[int(to_held.numbers[at, 0])])
        ratio = float(own[at])
        pairs.append(
            Pair(
                number=int(made.numbers[at]),
                label=int(made.labels[at]),
                train=train,
                train_name=real.train_name(train),
                held=held,
                held_name=real.held_name(held),
                distance=float(to_train.distances[at, 0]) / unit,
                # The nearest held-out image may be at no distance, too.
                ratio=min(ratio, 1e9),
                near=ratio < limit,
            )
        )
        if len(pairs) == MOST_PAIRS:
            break
    return pairs


def _bins(values: Tensor) -> list[float]:
    low, high = RATIO_RANGE
    place = ((values.log2() - low) / (high - low) * RATIO_BINS).floor().clamp(0, RATIO_BINS - 1).long()
    return (torch.bincount(place, minlength=RATIO_BINS).double() / len(values)).tolist()


def share_interval(share: float, effective: float) -> Interval:
    """Return the 95 % interval (Wilson) of a share of this effective number of images, as shares."""
    low, high = wilson_interval(share * effective, effective)
    return min(share, low / 100), max(share, high / 100)


def _around(shift: MeanShift) -> Interval:
    value = float(shift.overall[0])
    return value - Z * shift.error, value + Z * shift.error


def _two_sided(statistics: Tensor) -> float:
    return min(1.0, 2 * min(p_value(statistics), p_value(-statistics)))


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
