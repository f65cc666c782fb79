"""The validation of `shards leakage` with small numbers: what is planted is found, what is not there is not."""

import torch
from tools.validate_leakage import NOISE, SHARDS, STRANGERS, Pool, alterations, lines, validate
from torch import nn

import clusterq as cq
from tests.common.leakage_images import pictures


def test_planted_images_are_found_and_strangers_are_not() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
    teacher = cq.Teacher.of(nn.Sequential(*layers), cq.InputSpec(size=8, channels=1, num_classes=3, mean=(0.5,), std=(0.2,)))
    labels = torch.arange(300) % 3
    pool = Pool.build(pictures(240, 0)[:, :1], labels[:240], (pictures(60, 1)[:, :1], labels[:60]), teacher, 60, 120, seed=0)
    validated = validate(pool, draws=2, planted=[8], plants=1, seed=0)
    assert validated["planted_in"] == SHARDS
    for name in (NOISE, STRANGERS, SHARDS):
        assert validated["false_alarms"][name]["alarms"] == 0
    for change in ("copied", "mirrored"):
        assert validated["power"][change][8]["alarms"] == 1, change
    for change in alterations(0):
        assert validated["power"][change][8]["listed"] > 0.6, change
    assert validated["power"]["shifted"][8]["alarms"] == 1
    text = "\n".join(lines(validated))
    assert "| planted in the set | 8 |" in text
    assert "| copied | 1 of 1, 100 % listed |" in text


def test_alterations_change_what_they_say() -> None:
    made = {name: change(pictures(4, 2)[:, :1]) for name, change in alterations(0).items()}
    original = pictures(4, 2)[:, :1]
    assert made["copied"].equal(original)
    assert made["mirrored"].flip(3).equal(original)
    assert made["shifted"][:, :, 1:, 1:].equal(original[:, :, :-1, :-1])
    for name in ("JPEG", "noise"):
        assert 2 < float((made[name].float() - original.float()).std()) < 12, name
