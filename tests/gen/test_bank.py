"""Banks: what a batch of optimised images is, and how many a bank has."""

import math
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterq_common.device.distributed import Ranks
from clusterq_common.images.normalise import normalise
from clusterq_common.taps import batchnorm_layers, batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_gen.bank.config import BANK_METHODS
from clusterq_gen.bank.layout import BankLayout
from clusterq_gen.bank.make import BankRun
from tests.gen.bank_settings import settings

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", list(BANK_METHODS))
def test_statistics_of_optimised_images_come_near_the_running_ones(teacher: Teacher, method: str) -> None:
    run = BankRun.start(settings(teacher.config, method, bank={"bank_steps": 60}), teacher, CPU)
    batch = run.optimise(0)
    names = {name.partition("/")[2] for name in batch.losses}
    assert (
        names
        == {
            "zeroq": {"bns", "input"},
            "dsg": {"bns", "input", "emphasis"},
            "intraq": {"bns", "class", "margin"},
        }[method]
    )
    assert batch.losses["loss/bns"] < 0.5 * batch.losses["first/bns"]
    # On the pixels that were stored, against a loop over layers.
    noise = BankRun.start(settings(teacher.config, method, bank={"bank_steps": 1, "bank_lr": 1e-9}), teacher, CPU).optimise(0)
    distances = [apart_from_running(teacher, images.pixels) for images in (batch, noise)]
    assert distances[0] < 0.5 * distances[1]
    if method == "intraq":
        assert batch.losses["loss/class"] < 0.5 * batch.losses["first/class"]
        assert (batch.top1 == batch.labels).float().mean() > 0.9


def apart_from_running(teacher: Teacher, pixels: torch.Tensor) -> float:
    total = 0.0
    with torch.no_grad(), batchnorm_taps(teacher.model) as taps:
        teacher.model(normalise(pixels, teacher.spec))
    for moments, layer in zip(taps, batchnorm_layers(teacher.model).values(), strict=True):
        seen = moments.own()
        assert layer.running_mean is not None
        assert layer.running_var is not None
        total += float((seen.mean - layer.running_mean).square().mean())
        total += float((seen.var.sqrt() - layer.running_var.sqrt()).square().mean())
    return total


@pytest.mark.parametrize("method", list(BANK_METHODS))
def test_a_batch_depends_on_the_seed_and_its_number_alone(teacher: Teacher, method: str) -> None:
    def start(seed: int) -> BankRun:
        return BankRun.start(settings(teacher.config, method, bank={"bank_steps": 3}, runtime={"seed": seed}), teacher, CPU)

    run = start(1)
    first, second = run.optimise(0), run.optimise(1)
    again = start(1).optimise(1)
    assert torch.equal(again.pixels, second.pixels)
    assert torch.equal(again.labels, second.labels)
    assert again.losses == second.losses
    assert not torch.equal(first.pixels, second.pixels)
    assert not torch.equal(start(2).optimise(1).pixels, second.pixels)


def test_each_setting_makes_its_term(teacher: Teacher) -> None:
    def losses(**bank: object) -> dict[str, float]:
        config = settings(teacher.config, "zeroq", bank={"bank_steps": 1, **bank})
        return BankRun.start(config, teacher, CPU).optimise(1).losses

    plain = losses()
    assert losses(bank_bns_weight=3.0)["first/bns"] == pytest.approx(3 * plain["first/bns"])
    assert "first/input" not in losses(bank_input_weight=0.0)
    hard, soft = losses(bank_class_weight=1.0, bank_hard_gamma=2.0), losses(bank_class_weight=1.0, bank_class_loss="soft")
    even = losses(bank_class_weight=1.0)
    assert hard["first/class"] < even["first/class"]
    assert soft["first/class"] < 1
    cropped = losses(bank_crop=1.0, bank_crop_least=0.05)
    assert cropped["first/bns"] != pytest.approx(plain["first/bns"])
    assert cropped["first/input"] == plain["first/input"], "of the whole images"


@given(
    st.integers(2, 300),
    st.integers(1, 300),
    st.integers(1, 60),
    st.integers(0, 6),
    st.floats(1, 2),
    st.sampled_from(["zeroq", "intraq"]),
)
def test_a_bank_holds_what_is_wanted(
    classes: int, batch_size: int, per_class: int, heldout: int, spare: float, method: str
) -> None:
    config = settings(
        TeacherConfig(arch="any"),
        method,
        train={"batch_size": batch_size},
        emit={"per_class": per_class, "heldout_per_class": heldout},
        bank={"bank_spare": spare},
    )
    layout = BankLayout.of(config, classes)
    if method == "zeroq":
        assert layout.labels(0) is None
        assert layout.batches == math.ceil((per_class + heldout) * classes / batch_size)
    else:
        counts = [0] * classes
        for number in range(layout.batches):
            labels = layout.labels(number)
            assert labels is not None
            assert len(labels) == layout.batch_size <= batch_size
            for label in labels.tolist():
                counts[label] += 1
        assert min(counts) >= math.ceil(spare * (per_class + heldout))
        assert max(counts) - min(counts) <= max(layout.batch_size // (layout.classes or 1), 1)
    for world in (1, 2, 3):
        shares = [list(layout.share(Ranks(rank, world))) for rank in range(world)]
        assert sorted(chain.from_iterable(shares)) == list(range(layout.batches))
