"""Sentences of a leakage report."""

from typing import Any

import pytest

from clusterq_report.leakage.findings import (
    RATIO_BINS,
    Attack,
    BesideControl,
    ClassFigures,
    Difference,
    Leakage,
    Membership,
    NearCopies,
    RealImages,
    SpaceFigures,
)
from clusterq_report.leakage.summary import summary_lines
from clusterq_report.leakage.verdicts import leaks, verdicts


def beside(value: float, **changes: Any) -> BesideControl:
    plain = BesideControl(
        value=value,
        interval=(value - 0.05, value + 0.05),
        p=0.3,
        corrected=1,
        control=0.5,
        control_interval=(0.45, 0.55),
        control_p=0.7,
    )
    return plain.model_copy(update=changes)


def copies(**changes: Any) -> NearCopies:
    plain = NearCopies(
        count=0,
        originals=0,
        limit=0.6,
        rate=0.001,
        rate_interval=(0.0, 0.004),
        expected=0.5,
        p=1,
        corrected=1,
        of_held=0,
        held_originals=0,
        exact=0,
    )
    return plain.model_copy(update=changes)


def space(name: str = "pixels", **changes: Any) -> SpaceFigures:
    row = ClassFigures(label=3, images=50, auc=0.5, auc_interval=(0.4, 0.6), auc_corrected=0.9, mean=0.1, mean_corrected=0.4)
    plain = SpaceFigures(
        name=name,
        shown="the teacher's features" if name == "teacher" else name,
        nearness=beside(0.5),
        copies=copies(),
        means=beside(0.0, control=0.0),
        mean_classes=10,
        mean_towards=5,
        by_class=[row],
        pairs=[],
        ratios=[1 / RATIO_BINS] * RATIO_BINS,
        control_ratios=[1 / RATIO_BINS] * RATIO_BINS,
    )
    return plain.model_copy(update=changes)


def report(*spaces: SpaceFigures, **changes: Any) -> Leakage:
    real = RealImages(name="real", layout="class folders", images=1000, compared=1000, unreadable=0, remarks=[])
    attack = Attack(model="teacher", score="loss", auc=0.6, auc_interval=(0.57, 0.63), caught={"1": (0.02, 0.01, 0.04)})
    plain = Leakage(
        shards="sha256:0",
        split="train",
        of_images=500,
        images=500,
        seed=0,
        permutations=999,
        draws=1,
        teacher="net",
        teacher_digest="0",
        other=None,
        other_digest=None,
        names=None,
        train=real,
        held=real,
        control=500,
        equal=500,
        in_both=0,
        alone=0,
        spaces=list(spaces) or [space()],
        membership=Membership(train=1000, held=1000, attacks=[attack], differences=[]),
    )
    return plain.model_copy(update=changes)


def said(leakage: Leakage) -> str:
    return "\n".join(f"{verdict.level}: {verdict.sentence}" for verdict in verdicts(leakage))


def test_a_set_that_gives_nothing_away() -> None:
    text = said(report())
    assert leaks(report()) == []
    assert text.count("warning") == 1, "but for that the result itself is private"
    assert "Do not share it." in text
    assert "No test found that the set lies nearer to the training images than to held-out ones. That is no guarantee" in text
    assert (
        "tells training from held-out images with AUC 0.600 [0.570, 0.630] (0.5: not at all), and finds 2.0 % [1.0 %, 4.0 %]"
        in text
    )


FOUND = {"p": 0.001, "corrected": 0.005}


@pytest.mark.parametrize(
    ("changes", "alarms", "sentence"),
    [
        ({"nearness": beside(0.7, **FOUND)}, ["nearness in pixels"], "warning: In pixels, the nearest real image is a training image for 70.0 %"),
        ({"nearness": beside(0.7, **FOUND, control=0.69, control_interval=(0.66, 0.72), control_p=0.002)}, [], "says little about the set"),
        ({"nearness": beside(0.9, **FOUND, control=0.6, control_interval=(0.55, 0.65), control_p=0.002)}, ["nearness in pixels"], "differ by more than training"),
        ({"nearness": beside(0.3)}, [], "the set lies nearer to held-out images, which is no sign of leakage"),
        ({"means": beside(0.3, **FOUND, control=0.0)}, ["class means in pixels"], "class averages of the training images show"),
        ({"copies": copies(count=9, originals=9, **FOUND)}, ["near-copies in pixels"], "more than chance explains. Look at the pairs."),
        ({"copies": copies(count=9, originals=9, of_held=9, held_originals=9, **FOUND)}, [], "a single copy is no excess"),
        ({"copies": copies(exact=1)}, ["exact copies in pixels"], "warning: 1 of 500 images equal a training image in pixels."),
    ],
)  # fmt: skip
def test_alarms(changes: dict[str, Any], alarms: list[str], sentence: str) -> None:
    leakage = report(space(**changes))
    assert leaks(leakage) == alarms
    assert sentence in said(leakage)
    if alarms:
        assert f"Found: {alarms[0]}." in said(leakage)


def test_the_teacher_s_own_memory_is_named() -> None:
    apart = beside(0.2, control=0.25, control_interval=(0.2, 0.3), control_p=0.001)
    assert "the teacher places its training images apart" in said(report(space("teacher", nearness=apart)))


def test_where_the_teacher_places_its_training_images_apart_nothing_is_concluded() -> None:
    """The figures of images that knew nothing of the training images, in the features of a teacher overfitted on 20 of each class."""
    means = beside(1.92, **FOUND, control=-2.6, control_interval=(-2.75, -2.46), control_p=0.002)
    near = beside(0.64, **FOUND, control=0.02, control_interval=(0.01, 0.07), control_p=0.002)
    leakage = report(space(), space("teacher", means=means, nearness=near))
    assert leaks(leakage) == []
    assert said(leakage).count("the teacher places its training images apart, so this says little about the set") == 2
    # Another network's features do not depend on which images the teacher saw, so the test holds there.
    other = report(space(), space("other", means=means, nearness=near))
    assert leaks(other) == ["nearness in other", "class means in other"]


def test_what_was_left_out_is_said() -> None:
    real = RealImages(
        name="real", layout="class folders", images=9000, compared=995, unreadable=5, remarks=["odd, skipped: 2 (a, b)"]
    )
    text = said(report(train=real, in_both=3, alone=2, images=100))
    for sentence in (
        "5 training images could not be read",
        "Training images: odd, skipped: 2 (a, b)",
        "995 of 9,000 training images were compared, drawn by class. A copy of another one is not seen.",
        "100 of the set's 500 images were compared",
        "3 held-out images are training images, too",
        "2 classes have only training or only held-out images",
    ):
        assert sentence in text


def test_the_student_beside_the_teacher() -> None:
    for interval, how in (((-0.2, -0.1), "less well than"), ((0.01, 0.2), "better than"), ((-0.1, 0.1), "as well as")):
        difference = Difference(score="loss", difference=sum(interval) / 2, interval=interval)
        membership = report().membership.model_copy(update={"differences": [difference]})
        assert f"the student tells training from held-out images {how} the teacher" in said(report(membership=membership))


def test_the_table() -> None:
    lines = summary_lines(report(space(copies=copies(exact=2, count=3, originals=3))))
    assert lines[0].split("  ")[0] == "compared in"
    cells = "pixels 2 3 0.50 0 50.0 % [45.0, 55.0] 50.0 % [45.0, 55.0] +0.000 [-0.050, +0.050] 1, 1, 1"
    assert " ".join(lines[1].split()) == cells
    assert "teacher, loss" in lines[4]
