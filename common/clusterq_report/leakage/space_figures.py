"""Figures of one space: what is found for the set, tested, and the same of the control."""

import torch
from torch import Tensor

from clusterq_common.intervals import Z, wilson_interval
from clusterq_report.leakage.arrangements import corrected_for_many, p_value
from clusterq_report.leakage.beside import Comparison, Real
from clusterq_report.leakage.config import LeakageConfig
from clusterq_report.leakage.copies import calibrated, ratios
from clusterq_report.leakage.findings import (
    RATIO_BINS,
    RATIO_RANGE,
    BesideControl,
    ClassFigures,
    Interval,
    NearCopies,
    SpaceFigures,
)
from clusterq_report.leakage.means import MeanShift
from clusterq_report.leakage.nearness import Nearness
from clusterq_report.leakage.neighbours import Neighbours
from clusterq_report.leakage.pairs import most_alike
from clusterq_report.leakage.spaces import Images, Space


def figures_of(
    space: Space, made: Images, real: Real, beside: tuple[Comparison, Comparison], config: LeakageConfig
) -> SpaceFigures:
    """Return the figures of a space. Their p-values are not yet corrected for the number of tests.

    Args:
        space: where the images were compared.
        made: the set's images.
        real: training and held-out images.
        beside: the set and the control beside them, with all arrangements counted.
        config: settings.
    """
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
        pairs=most_alike(space, made, real, of_set.nearest, own, copies.limit),
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
