"""Verdicts of a quality report: its warnings, and figures that it leaves unjudged."""

import math
from typing import Any

import pytest

from clusterq_report.html.blocks import Figure, Folded, Table
from clusterq_report.quality import page
from clusterq_report.quality.findings import (
    BINS,
    ClassFigures,
    Distribution,
    Diversity,
    Frechet,
    ImageFigures,
    LayerDistance,
    Quality,
    RealImages,
)
from clusterq_report.quality.score import balance, score
from clusterq_report.quality.summary import summary_lines, summary_rows
from clusterq_report.quality.verdicts import verdicts


def even(mean: float) -> Distribution:
    return Distribution(mean=mean, median=mean, low=mean, high=mean, shares=[1 / BINS] * BINS)


def source(*, off: float = 0.1, entropy: float = 0.1, nearest: float = 0.5, **changes: Any) -> ImageFigures:
    plain = ImageFigures(
        images=1000,
        classes=4,
        agreement=1,
        confidence=even(0.9),
        entropy=even(entropy),
        clipped=0.01,
        other=None,
        other_teacher=None,
        batchnorm=[LayerDistance(layer="first", mean=off, std=0.1), LayerDistance(layer="second", mean=2 * off, std=0.1)],
        pixels=Diversity(typical=60, within=1, nearest=0.6, nearest_other=0.7),
        features=Diversity(typical=5, within=0.6, nearest=nearest, nearest_other=0.8),
        exact=0,
        near=0,
    )
    return plain.model_copy(update=changes)


def of_class(label: int, **changes: Any) -> ClassFigures:
    plain = ClassFigures(
        label=label,
        images=250,
        agreement=1,
        taken_for=None,
        confidence=0.9,
        entropy=0.1,
        clipped=0.01,
        other=None,
        exact=0,
        near=0,
        pixels_nearest=0.6,
        features_nearest=0.5,
        features_nearest_other=0.8,
        features_within=0.6,
    )
    return plain.model_copy(update=changes)


def quality(**changes: Any) -> Quality:
    plain = Quality(
        shards="sha256:" + "0" * 64,
        split="train",
        of_images=1000,
        dropped=True,
        seed=0,
        teacher="net",
        teacher_digest="sha256:" + "1" * 64,
        other=None,
        other_digest=None,
        names=["ant", "bee", "cat", "dog"],
        missing=[],
        real=None,
        sources={"set": source(), "noise": source(off=1.0, entropy=0.5)},
        per_class=[of_class(label) for label in range(4)],
        pairs=[],
        contradicted=[],
    )
    return plain.model_copy(update=changes)


def warnings(report: Quality) -> list[str]:
    return [remark.sentence for remark in verdicts(report) if remark.level == "warning"]


def with_classes(*rows: ClassFigures) -> dict[str, Any]:
    labels = {row.label for row in rows}
    return {"per_class": [*rows, *(of_class(label) for label in range(4) if label not in labels)]}


def with_source(name: str, of: ImageFigures, **others: ImageFigures) -> dict[str, Any]:
    return {"sources": {"set": source(), "noise": source(off=1.0, entropy=0.5), **others, name: of}}


REAL = {"real": RealImages(name="val", layout="class folders", images=5000, unreadable=0)}


def test_a_good_set_gives_no_warning() -> None:
    assert warnings(quality()) == []
    assert warnings(quality(**REAL, **with_source("real", source()))) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"missing": [1, 3]}, "No image in the split train: 1 bee, 3 dog."),
        (with_source("set", source(agreement=0.99)), "labels or images were changed since"),
        (with_source("set", source(exact=11)), "11 images (1.10 %) have an exact copy among the others, more than 1 %."),
        (with_classes(of_class(2, near=0.37)), "37 % of the 250 images of class 2 cat are near-duplicates of another one, more than 10 %."),
        (with_classes(of_class(2, near=0.9)), "class 2 cat are near-duplicates of another one: the class has collapsed."),
        (with_classes(of_class(0, agreement=0.3, taken_for=3)), "30 % of the 250 images of class 0 ant, less than half; most often it says 3 dog."),
        (with_classes(of_class(1, pixels_nearest=0.2)), "Images of class 1 bee lie close together in pixels: nearest neighbours at 0.200"),
        (with_classes(of_class(1, features_nearest=0.2)), "Images of class 1 bee lie close together in the teacher's features"),
        (with_source("set", source(off=0.95, entropy=0.1)), "hardly closer than pure noise's"),
        (with_source("set", source(entropy=0.48)), "hardly surer of these images than of noise"),
        ({**REAL, **with_source("real", source(nearest=1.1))}, "less than half of what real images have"),
        (
            {"other": "peer", **REAL, **with_source("set", source(other=0.3), noise=source(off=1, entropy=0.5, other=0.1), real=source(other=0.7))},
            "peer, which the images were not made for, names the label on 30.0 % (pure noise: 10.0 %; real images: 70.0 %); less than half",
        ),
        ({**REAL, "real": REAL["real"].model_copy(update={"unreadable": 2}), **with_source("real", source())}, "2 real images could not be read"),
    ],
)  # fmt: skip
def test_what_is_warned_of(changes: dict[str, Any], sentence: str) -> None:
    sentences = warnings(quality(**changes))
    assert len(sentences) == 1
    assert sentence in sentences[0]


@pytest.mark.parametrize(
    "changes",
    [
        with_classes(of_class(2, images=4, near=0.25)),
        with_classes(of_class(2, images=4, agreement=0.25, taken_for=1)),
        with_classes(of_class(2, images=4, pixels_nearest=0.2)),
        with_source("set", source(agreement=0.9995)),
        {"dropped": False, **with_source("set", source(agreement=0.8))},
        {"other": "peer", **with_source("set", source(other=0.1), noise=source(off=1, entropy=0.5, other=0.1))},
    ],
    ids=["few near", "few seen", "few alike", "rounding", "kept on purpose", "no real images to compare with"],
)
def test_what_proves_nothing_is_no_warning(changes: dict[str, Any]) -> None:
    assert warnings(quality(**changes)) == []


def test_figures_stand_beside_their_references() -> None:
    halves = source(frechet=Frechet(squared=0.5, relative=0.01))
    apart = {
        name: source(frechet=Frechet(squared=value, relative=value / 50)) for name, value in (("set", 5.0), ("noise", 40.0))
    }
    report = quality(**REAL, sources={**apart, "real": halves})
    heads, rows = summary_rows(report)
    assert heads == ["", "this set", "pure noise", "real images"]
    assert ["Frechet distance to real (of real: halves)", "5", "40", "0.500"] in rows
    assert any(
        "0.100 of their variance" in line and "two halves of the real images: 0.0100" in line for line in summary_lines(report)
    )
    assert not [row for row in summary_rows(quality())[1] if "Frechet" in row[0]], "a row that nobody has is left out"


def test_the_score_falls_with_batchnorm_distance_missing_classes_and_contradicted_labels() -> None:
    noise = source(off=1.0)
    good = with_source("set", source(off=0.1), noise=noise)
    rows = {row[0]: row[1:] for row in summary_rows(quality(**good))[1]}
    name = "score among sets of this teacher, 0 to 1"
    assert rows[name][0] == f"{score(quality(**good)):.3g}"
    assert set(rows[name][1:]) == {"–"}
    two = {"per_class": [of_class(0, images=30), of_class(1, images=10)]}
    shares = (0.75, 0.25)
    evenness = math.exp(-sum(share * math.log(share) for share in shares)) / 2
    assert balance(quality(**two)) == pytest.approx(evenness)
    assert balance(quality(**two, missing=[2, 3])) == pytest.approx(evenness / 2)
    far = with_source("set", source(off=0.5), noise=noise)
    denied = with_source("set", source(off=0.1, agreement=0.5), noise=noise)
    assert score(quality(**denied)) == pytest.approx(0.5 * score(quality(**good)))
    assert 0 < score(quality(**far)) < score(quality(**good))
    assert score(quality(**with_source("set", source(off=1.2), noise=noise))) == 0


def test_many_classes_are_shown_by_the_worst() -> None:
    rows = [of_class(label, near=0.05 if label == 777 else 0.0) for label in range(1000)]
    own = source(near=0.001, classes=1000)
    report = quality(names=None, per_class=rows, **with_source("set", own))
    (drawn,) = page._near(report)
    assert isinstance(drawn, Figure)
    assert "The 20 of 1000 classes where it is worst." in drawn.caption
    assert drawn.drawing.index(">777<") < drawn.drawing.index(">1<")
    assert drawn.drawing.count('class="bar s0"') == 20
    (folded,) = page._classes(report)
    assert isinstance(folded, Folded)
    (table,) = [block for block in folded.blocks if isinstance(block, Table)]
    assert len(table.rows) == 1000
