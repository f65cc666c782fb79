"""Membership attacks, which tell training images from held-out ones by a network's outputs."""

import math

import numpy as np
import torch

from clusterq_common.intervals import Z
from clusterq_common.run.seeding import stream
from clusterq_finetune.evaluation.binary import Scores, auroc, placements
from clusterq_report.leakage.findings import OTHER, Attack, Difference, Membership
from clusterq_report.leakage.spaces import Images

STUDENT = "student"
# Percent of held-out images that may be called training images, with the fewest held-out images that can show it: five false ones.
RATES = {"1": 500, "0.1": 5000}


def membership(train: Images, held: Images, models: list[str], seed: int, resamples: int = 1000) -> Membership:
    """Attack each network by its loss, its confidence, and its likelihood ratio to another network if there is one.

    - loss (Yeom et al., 2018): the label's log(p / (1 - p)), which orders images as the loss does and does not saturate.
    - confidence (Salem et al., 2019): the same of the network's own class; needs no label.
    - likelihood ratio (Watson et al., 2022): the loss's score minus that of the other network, so that images that are easy for any
      network do not count. It needs another network that was not trained on these training images.

    Args:
        train, held: images with the networks' answers.
        models: the attacked networks, of `teacher` and `student`.
        seed: seed of the bootstrap.
        resamples: its draws.
    """
    attacks, scores = [], {}
    for model in models:
        kinds = {
            "loss": [_numpy(group.margins[model]) for group in (train, held)],
            "confidence": [_numpy(group.confidences[model]) for group in (train, held)],
        }
        if OTHER in train.margins:
            kinds["likelihood ratio"] = [_numpy(group.margins[model] - group.margins[OTHER]) for group in (train, held)]
        for kind, (positive, negative) in kinds.items():
            scores[model, kind] = positive, negative
            area, interval = auroc(positive, negative)
            caught = {
                rate: _caught(positive, negative, float(rate) / 100, seed, resamples)
                for rate, fewest in RATES.items()
                if len(negative) >= fewest
            }
            attacks.append(Attack(model=model, score=kind, auc=area, auc_interval=interval, caught=caught))
    differences = []
    if STUDENT in models:
        for model, kind in scores:
            if model == STUDENT:
                differences.append(_difference(kind, scores[STUDENT, kind], scores[models[0], kind]))
    return Membership(train=len(train), held=len(held), attacks=attacks, differences=differences)


def caught_share(positive: Scores, negative: Scores, rate: float) -> float:
    """Return the share of positives above all but this share of negatives.

    Args:
        positive: (M,) scores.
        negative: (N,) scores; at most rate * N of them lie above the threshold.
        rate: from 0 to 1.
    """
    allowed = math.floor(rate * len(negative) + 1e-9)
    threshold = np.sort(negative)[len(negative) - 1 - allowed]
    return float((positive > threshold).mean())


def _caught(positive: Scores, negative: Scores, rate: float, seed: int, resamples: int) -> tuple[float, float, float]:
    """Return `caught_share` and its 95 % interval: percentiles over draws of both kinds with replacement."""
    positive, negative = np.sort(positive), np.sort(negative)
    random = stream(seed, "leakage bootstrap")
    resampled = []
    for _ in range(resamples):
        mine, others = (torch.randint(len(scores), (len(scores),), generator=random).numpy() for scores in (positive, negative))
        resampled.append(caught_share(positive[mine], negative[others], rate))
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    value = caught_share(positive, negative, rate)
    return value, min(value, low), max(value, high)


def _difference(kind: str, student: tuple[Scores, Scores], teacher: tuple[Scores, Scores]) -> Difference:
    """Return AUC of the student minus that of the teacher; images are the same, so their placements are subtracted in pairs (DeLong et al., 1988)."""
    above, below = (mine - theirs for mine, theirs in zip(placements(*student), placements(*teacher), strict=True))
    half = Z * math.sqrt(float(above.var(ddof=1)) / len(above) + float(below.var(ddof=1)) / len(below))
    value = float(above.mean())
    return Difference(score=kind, difference=value, interval=(value - half, value + half))


def _numpy(values: torch.Tensor) -> Scores:
    return values.numpy().astype(np.float64)
