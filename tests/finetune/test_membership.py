"""Membership attacks against plain computations."""

import numpy as np
import pytest
import torch

from clusterq_finetune.evaluation.binary import auroc
from clusterq_finetune.shards_tools.membership import caught_share, membership
from clusterq_report.leakage.spaces import Images


def answers(count: int, shift: float, seed: int) -> Images:
    """Random scores of two networks and of a third one that knows nothing."""
    random = torch.Generator().manual_seed(seed)
    easy = torch.randn(count, generator=random, dtype=torch.float64)
    noise = torch.randn(3, count, generator=random, dtype=torch.float64)
    teacher, student, other = easy + noise[0] + shift, easy + noise[1] + shift / 4, easy + 0.1 * noise[2]
    scores = {"teacher": teacher, "student": student, "other": other}
    nothing = torch.zeros(count, dtype=torch.int64)
    return Images(torch.arange(count), nothing, nothing, {}, scores, {name: value.abs() for name, value in scores.items()})


def test_attacks_on_teacher_and_student() -> None:
    train, held = answers(700, 1.0, 0), answers(600, 0.0, 1)
    attacked = membership(train, held, ["teacher", "student"], seed=0)
    by_name = {(attack.model, attack.score): attack for attack in attacked.attacks}
    assert len(by_name) == 6
    pairs = train.margins["teacher"][:, None] - held.margins["teacher"]
    assert by_name["teacher", "loss"].auc == pytest.approx(float((pairs > 0).double().mean()))
    ratio = by_name["teacher", "likelihood ratio"].auc
    assert ratio is not None
    assert ratio > (by_name["teacher", "loss"].auc or 1), "what is easy for everybody is taken out"
    share, low, high = by_name["teacher", "loss"].caught["1"]
    assert low < share < high
    assert share == caught_share(train.margins["teacher"].numpy(), held.margins["teacher"].numpy(), 0.01)
    assert "0.1" not in by_name["teacher", "loss"].caught, "600 images cannot show one in a thousand"
    assert {difference.score: difference.interval[1] < 0 for difference in attacked.differences} == {
        "loss": True,
        "likelihood ratio": True,
        "confidence": True,
    }
    assert membership(train, held, ["teacher", "student"], seed=0) == attacked


def test_the_difference_has_the_spread_that_draws_of_images_have() -> None:
    """DeLong's paired interval beside the spread over many draws."""
    differences, halves = [], []
    for seed in range(150):
        train, held = answers(80, 0.5, 2 * seed + 10), answers(60, 0.0, 2 * seed + 11)
        difference = next(
            difference
            for difference in membership(train, held, ["teacher", "student"], 0, resamples=1).differences
            if difference.score == "loss"
        )
        differences.append(difference.difference)
        halves.append((difference.interval[1] - difference.interval[0]) / 2)
        areas = [auroc(train.margins[name].numpy(), held.margins[name].numpy())[0] for name in ("student", "teacher")]
        assert difference.difference == pytest.approx((areas[0] or 0) - (areas[1] or 0))
    assert np.mean(halves) == pytest.approx(1.96 * np.std(differences), rel=0.2)


def test_training_images_found_at_few_false_alarms() -> None:
    negative = np.arange(1000) / 1000
    assert caught_share(np.array([0.9905, 0.9885, 2.0]), negative, 0.01) == 2 / 3, "ten of a thousand lie above 0.989"
    assert caught_share(np.array([0.999, 1.0]), negative, 0.0) == 1 / 2, "not above, but equal"
