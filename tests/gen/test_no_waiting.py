"""Steps of generators and banks keep a GPU busy: the host never waits for it, and nothing is left on the host."""

import dataclasses

import pytest
import torch

from clusterq_common.taps import StoredStatistics, batchnorm_taps
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_gen.bank.make import BankRun
from clusterq_gen.bank.statistics import LayerTarget
from clusterq_gen.training.loop import train_step
from clusterq_gen.training.state import Training
from clusterq_gen.training.step_random import StepRandom
from tests.elsewhere import ELSEWHERE, move, nothing_waits
from tests.gen.bank_settings import settings
from tests.gen.conftest import CPU, small


@pytest.fixture
def own_teacher(teacher: Teacher) -> Teacher:
    """One that may be moved."""
    return load_teacher(teacher.config)


@pytest.mark.parametrize(
    "method",
    [
        {"method": "clusterq"},
        {
            "method": "clusterq",
            "bns_units": "std",
            "fda_units": "std",
            "de_noise": "uniform",
            "soft_target": 0.9,
            "hard_gamma": 2.0,
            "alpha_spread": 5.0,
        },
        {"method": "gdfq"},
        {"method": "adadfq"},
        {"method": "qimera"},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_a_generator_step_waits_for_nothing(
    own_teacher: Teacher, method: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Training.start(small(own_teacher, method=method, train={"gradient_norm_every": 2}), own_teacher, CPU)
    run.end_warmup(lambda _: None)
    _move(run)
    run.step = run.warmup_steps + 1
    with nothing_waits(monkeypatch), batchnorm_taps(own_teacher.model) as taps:
        stored = run.stored_statistics()
        for _ in range(2):  # one of them with gradient norms
            values = train_step(run, taps, stored)
            run.step += 1
    assert all(value.device == ELSEWHERE for name, value in values.items() if name != "lr")
    assert run.generator.to_map.weight.grad is not None


@pytest.mark.parametrize("method", ["zeroq", "dsg", "intraq"])
def test_a_bank_step_waits_for_nothing(own_teacher: Teacher, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = BankRun.start(
        settings(own_teacher.config, method, bank={"bank_crop": 1.0} if method == "intraq" else {}), own_teacher, CPU
    )
    targets = [_target(target) for target in run.optimiser.targets]
    optimiser = dataclasses.replace(run.optimiser, device=ELSEWHERE, targets=targets)
    move(own_teacher.model)
    labels, count = run.layout.labels(0), run.layout.batch_size
    steps = optimiser.steps_for(torch.Size((count, 1, 8, 8)), labelled=labels is not None)
    steps.optimizer = torch.optim.Adam([steps.images])  # the meta device has no fused updates
    steps.begin(torch.zeros(count, 1, 8, 8), labels)
    with nothing_waits(monkeypatch):
        for step in range(2):
            terms = steps.take_step(0.1, *optimiser.draws(count, 0, step))
    assert all(term.device == ELSEWHERE for term in terms.values())
    assert steps.images.grad is not None


def _move(run: Training) -> None:
    """A run after warm-up, all of it."""
    assert run.student is not None
    for network in (run.teacher.model, run.generator, run.student):
        move(network)
    run.device, run.draws = ELSEWHERE, StepRandom(ELSEWHERE)
    # What moved has no state yet; fused updates know the meta device as little as autocast does.
    run.optimizer = torch.optim.Adam(run.generator.parameters())
    run.student_optimizer = torch.optim.SGD(run.student.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    if run.centroids is not None:
        held, layers = run.centroids, run.centroids.layers
        held.mean, held.std, held.known = (value.to(ELSEWHERE) for value in (held.mean, held.std, held.known))
        unit = None if layers.unit is None else layers.unit.to(ELSEWHERE)
        held.layers = dataclasses.replace(layers, eps=layers.eps.to(ELSEWHERE), unit=unit)


def _target(target: LayerTarget) -> LayerTarget:
    moved = {name: getattr(target.stored, name).to(ELSEWHERE) for name in ("mean", "var", "eps")}
    return dataclasses.replace(target, stored=StoredStatistics(**moved))
