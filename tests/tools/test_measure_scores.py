"""The study of scores: ranks and correlations against a plain version, a planted order found, missing students named."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from tools.measure_scores import correlate, correlation_lines, main, ranks, read_sets, spearman

from clusterq_common.intervals import holm
from clusterq_report.quality.findings import Distribution, Diversity, ImageFigures, LayerDistance, Quality


def figures(distance: float, confidence: float) -> ImageFigures:
    """Figures of a set at this BatchNorm distance."""
    spread = Diversity(typical=50.0, within=0.9, nearest=0.5, nearest_other=0.6)
    sure = Distribution(mean=confidence, median=confidence, low=confidence, high=confidence, shares=[0.05] * 20)
    layers = [LayerDistance(layer=f"bn{number}", mean=0.6 * distance, std=0.8 * distance) for number in range(3)]
    return ImageFigures(
        images=40,
        classes=2,
        agreement=1.0,
        confidence=sure,
        entropy=sure,
        clipped=0.01,
        other=None,
        other_teacher=None,
        batchnorm=layers,
        pixels=spread,
        features=spread,
        exact=0,
        near=0.0,
    )


def quality(distance: float, confidence: float) -> Quality:
    """Figures of a set of two classes, one of them without images, and of noise at distance 1."""
    known = {
        "label": 0,
        "images": 40,
        "agreement": 1.0,
        "taken_for": None,
        "confidence": confidence,
        "entropy": 0.1,
        "clipped": 0.0,
        "other": None,
        "exact": 0,
        "near": 0.0,
        "pixels_nearest": 0.5,
        "features_nearest": 0.5,
        "features_nearest_other": 0.5,
        "features_within": 0.5,
    }
    return Quality.model_validate(
        {
            "shards": "sha256:0",
            "split": "train",
            "of_images": 40,
            "dropped": None,
            "seed": 0,
            "teacher": "net",
            "teacher_digest": "sha256:0",
            "other": None,
            "other_digest": None,
            "names": None,
            "missing": [1],
            "real": None,
            "sources": {"set": figures(distance, confidence), "noise": figures(1.0, 0.5)},
            "per_class": [known],
            "pairs": [],
            "contradicted": [],
        }
    )


def plain_spearman(first: list[float], second: list[float]) -> float:
    """Pearson's correlation of ranks, where equal values share their mean rank, step by step."""

    def ranked(values: list[float]) -> list[float]:
        order = sorted(values)
        return [sum(place + 1 for place, other in enumerate(order) if other == value) / order.count(value) for value in values]

    a, b = ranked(first), ranked(second)
    middle = sum(a) / len(a)
    product = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    return float(product / (sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b)) ** 0.5)


def test_rank_correlations_equal_the_plain_version() -> None:
    draw = random.Random(0)
    for size in (5, 9, 14):
        first, second = ([float(draw.randint(0, 6)) for _ in range(size)] for _ in range(2))
        assert float(spearman(np.array(first), np.array(second))) == pytest.approx(plain_spearman(first, second))
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]


def test_p_of_a_correlation_is_the_share_of_orders_as_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.measure_scores.RESAMPLES", 500)
    monkeypatch.setattr("tools.measure_scores.PERMUTATIONS", 20_000)
    figure, top1 = [1.0, 2.0, 3.0, 5.0, 4.0], [10.0, 20.0, 40.0, 30.0, 50.0]
    correlation = correlate(np.array(figure), np.array(top1), seed=0)
    own = plain_spearman(figure, top1)
    orders = [abs(plain_spearman(figure, list(order))) >= own - 1e-9 for order in itertools.permutations(top1)]
    assert correlation is not None
    assert correlation.p == pytest.approx(sum(orders) / len(orders), abs=0.01)
    assert correlation.rho == pytest.approx(own)
    assert correlation.low < correlation.rho <= correlation.high
    assert correlate(np.ones(5), np.array(top1), seed=0) is None


def test_holm_multiplies_by_the_tests_that_are_left() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_planted_order_is_found_and_what_is_missing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.measure_scores.RESAMPLES", 200)
    monkeypatch.setattr("tools.measure_scores.PERMUTATIONS", 5000)
    draw = random.Random(1)
    for folder in ("quality", "students"):
        (tmp_path / folder).mkdir()
    for number in range(8):
        report = quality(0.1 * (number + 1), draw.random())
        (tmp_path / "quality" / f"set{number}.json").write_text(json.dumps({**report.model_dump(mode="json"), "score": 0.5}))
        (tmp_path / "students" / f"set{number}.json").write_text(json.dumps({"student": {"top1": 90.0 - number}}))
    flags = ["--quality", str(tmp_path / "quality"), "--students", str(tmp_path / "students")]
    main(flags)
    printed = capsys.readouterr().out
    assert "| BatchNorm mean off | less | +1.00 [1.00, 1.00]" in printed
    assert "| number of images | more | none" in printed
    # Half of two classes; noise is at distance 1, and the first set at 0.1.
    assert "| set0 | 40 | 0.060 | 0.080 |" in printed
    assert "| 0.100 | 0.450 | 90.00 |" in printed
    kept = read_sets(tmp_path / "quality", tmp_path / "students", ["set0"])
    assert sorted(kept) == [f"set{number}" for number in range(1, 8)]
    assert "+1.00" in "\n".join(correlation_lines(kept, seed=0))
    (tmp_path / "students" / "set3.json").unlink()
    with pytest.raises(SystemExit, match=r"set3\.json is missing"):
        main(flags)
    with pytest.raises(SystemExit, match="no set other"):
        main([*flags, "--without", "set3,other"])
    with pytest.raises(SystemExit, match="has 4 sets"):
        main([*flags, "--without", "set0,set1,set2,set3"])
