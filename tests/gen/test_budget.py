"""Time budgets of generator runs: plans by arithmetic, and a run through the command line."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.time_budget import total_seconds
from clusterq_gen import commands
from clusterq_gen.budget import fit_into
from clusterq_gen.config import GenConfig
from clusterq_gen.estimate import Speed, phases
from clusterq_gen.presets import resolve
from tests.conftest import FACTORY, TINY, Cli, DigitsTeacher

SPEED = Speed(step=0.1, image_step=0.001, candidate=0.01)


def quick(method: str = "clusterq") -> GenConfig:
    return resolve({"teacher": {"arch": "resnet20_cifar10"}, "method": {"method": method}}, "quick", imagenet_sized=False)


def seconds(config: GenConfig, classes: int = 10) -> float:
    return total_seconds(phases(config, classes, SPEED))


def test_phases_by_hand() -> None:
    seconds = {phase.name: phase.seconds for phase in phases(quick(), 10, SPEED)}
    images = 10 * (128 + 12)
    assert seconds == pytest.approx(
        {"generator": 0.1 * (200 + 1.4 * 600), "refinement": images * 50 * 0.001, "shards": images * 0.01}
    )


@pytest.mark.parametrize("method", ["clusterq", "zeroq", "intraq"])
@pytest.mark.parametrize("share", [2, 1.2, 0.8, 0.5, 0.3])
def test_a_plan_fits_and_is_the_largest(method: str, share: float) -> None:
    config = quick(method)
    budget = share * seconds(config)
    plan = fit_into(config, budget, 10, SPEED)
    assert seconds(plan) <= 0.9 * budget
    if share >= 1.2:
        assert plan == config, "a budget never makes a plan larger"
    else:
        assert seconds(plan) > 0.75 * 0.9 * budget


def test_a_plan_keeps_what_a_student_needs() -> None:
    with pytest.raises(ClusterqError, match=r"too short on this machine.*allow"):
        fit_into(quick(), 1, 10, SPEED)
    plan = fit_into(quick(), 0.15 * seconds(quick()), 10, SPEED)
    assert plan.train.epochs * plan.train.steps_per_epoch >= 100
    assert 10 * plan.emit.wanted(10)["train"] >= 250
    assert plan.emit.refine_steps >= 10
    many = fit_into(quick(), 0.9 * seconds(quick(), 1000), 1000, SPEED)
    assert many.emit.wanted(1000)["train"] >= 1


def test_through_the_command_line(gen: Cli, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    words = ["train", *digits_teacher.flags, *TINY, "--epochs", 3000, "--per-class", 3, "--out", tmp_path / "out"]
    done = gen(*words, "--time-budget", "1d", "--dry-run")
    assert done.code == 0, done.err
    assert re.search(r"^time: about .* \(generator .*, shards .*\)$", done.out, re.MULTILINE)
    done = gen(*words, "--time-budget", "15s", "--dry-run")
    planned = re.search(r"steps: (\d+) epochs x (\d+),", done.out)
    if done.code == 0:  # a busy machine may be too slow even for the smallest plan
        assert planned is not None
        assert int(planned[2]) < 60
    else:
        assert "too short on this machine" in done.err
    assert gen(*words, "--time-budget", "soon").code == 2
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_keeps_its_plan(gen: Cli, digits_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "out"
    shutil.copytree(digits_run, run)
    before = yaml.safe_load((run / "config.yaml").read_text())
    done = gen("train", "--out", run, "--arch", FACTORY, "--resume", "--time-budget", "1s")
    assert done.code == 0, done.err
    assert "keeps the plan that it was started with" in done.err
    after = yaml.safe_load((run / "config.yaml").read_text())
    assert (after["train"], after["emit"]) == (before["train"], before["emit"])


def test_the_speed_is_measured_once(
    gen: Cli, digits_teacher: DigitsTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(*_: object) -> Speed:
        measured.append(SPEED)
        return SPEED

    def train(*_: object, **__: object) -> None:
        raise ClusterqError("far enough")

    monkeypatch.setattr(commands, "measure_speed", measure)
    monkeypatch.setattr(commands, "train_generator", train)
    done = gen("train", *digits_teacher.flags, *TINY, "--out", tmp_path / "out", "--time-budget", "1d")
    assert "far enough" in done.err
    assert len(measured) == 1
