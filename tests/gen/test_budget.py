"""Time budgets of generator runs: plans by arithmetic, and a run through the command line."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import progress
from clusterq_common.progress.time_budget import total_seconds
from clusterq_common.run.child_process import part_environment
from clusterq_gen import commands
from clusterq_gen.budget import fit_into, plan_within
from clusterq_gen.config import GenConfig
from clusterq_gen.estimate import Speed, phases
from clusterq_gen.presets import resolve
from tests.conftest import FACTORY, TINY, Cli, DigitsTeacher

SPEED = Speed(step=0.1, image_step=0.001, candidate=0.01, student_share=1.4)


def quick(method: str = "clusterq") -> GenConfig:
    return resolve({"teacher": {"arch": "resnet20_cifar10"}, "method": {"method": method}}, "quick", imagenet_sized=False)


def seconds(config: GenConfig, classes: int = 10) -> float:
    return total_seconds(phases(config, classes, SPEED))


def test_phases_by_hand() -> None:
    seconds = {phase.name: phase.seconds for phase in phases(quick(), 10, SPEED)}
    images = 10 * (128 + 12)
    assert seconds == pytest.approx(
        {
            # The student joins with 400 images.
            "generator": 0.1 * (200 + 1.4 * 600) + 400 * 0.01,
            "refinement": images * 50 * 0.001,
            "shards": images * 0.01,
            "report": 3 + 256 * 4 * 0.01,
        }
    )
    few = GenConfig.validated({**quick().model_dump(), "emit": {**quick().emit.model_dump(), "images": 20}})
    few = few.model_copy(update={"output": few.output.model_copy(update={"report": False})})
    # Two images of each class and one held out are refined in a batch of ten of each.
    assert phases(few, 10, SPEED)[1:] == [("refinement", pytest.approx(100 * 50 * 0.001)), ("shards", pytest.approx(0.3))]


def test_a_disturbed_measurement_neither_refuses_a_budget_nor_makes_a_plan_small() -> None:
    config, budget = quick(), 1.2 * seconds(quick())
    slow = Speed(step=14 * 0.1, image_step=14 * 0.001, candidate=14 * 0.01, student_share=1.4)
    with pytest.raises(ClusterqError):
        fit_into(config, 0.2 * budget, 10, slow)
    for times in ([slow, SPEED], [slow, slow, SPEED]):
        measured = iter(times)
        plan, speed = plan_within(config, 0.2 * budget, 10, lambda measured=measured: next(measured))
        assert (speed, plan) == (SPEED, fit_into(config, 0.2 * budget, 10, SPEED))
    # Steps so short that all repeats may have been disturbed are timed once more before a plan becomes smaller.
    hurried = Speed(step=0.2, image_step=0.002, candidate=0.02, student_share=1.4)
    measured = iter([hurried, SPEED])
    assert plan_within(config, budget, 10, lambda: next(measured)) == (config, SPEED)
    with pytest.raises(ClusterqError, match=r"\(measured 3 times, the fastest of each: a generator step 0\.1 s,.*allow "):
        plan_within(config, 1, 10, lambda: SPEED)


def test_a_part_of_a_command_plans_with_the_speed_of_its_plan(
    gen: Cli, digits_teacher: DigitsTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However busy the machine is when the part begins; and its progress counts the command's later stages."""
    flags = [*digits_teacher.flags, *TINY, "--steps-per-epoch", 400, "--out", tmp_path / "out", "--time-budget", "60s"]
    monkeypatch.setattr(commands, "measure_speed", lambda *_: SPEED)
    done = gen("train", *flags, "--dry-run", "--json")
    assert done.code == 0, done.err
    message = {"speed": json.loads(done.out.splitlines()[-1])["speed"], "afterwards": 600.0}
    steps = re.search(r"^steps: 6 epochs x (\d+),", done.out, re.MULTILINE)
    assert steps is not None
    assert int(steps[1]) < 400

    def train(config: GenConfig, *_: object, **__: object) -> None:
        with progress("training", 2, phase="generator") as ticker:
            ticker.advance()
        raise ClusterqError(f"far enough: {config.train.steps_per_epoch} steps")

    monkeypatch.setattr(commands, "measure_speed", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(commands, "train_generator", train)
    monkeypatch.setattr("clusterq_common.progress.console.LEAST_SECONDS_BETWEEN_LINES", 0.0)
    for name, value in part_environment(message).items():
        monkeypatch.setenv(name, value)
    done = gen("train", *flags)
    assert f"far enough: {steps[1]} steps" in done.err
    assert "then about 10 min" in done.err


def test_a_run_whose_plan_a_budget_made_smaller_goes_on_with_the_same_command(
    gen: Cli, digits_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "out"
    shutil.copytree(digits_run, run)
    steps = yaml.safe_load((run / "config.yaml").read_text())["train"]["steps_per_epoch"]
    words = ["train", "--out", run, "--arch", FACTORY, "--resume", "--dry-run"]
    assert gen(*words, "--steps-per-epoch", 2 * steps, "--time-budget", "1h").code == 0
    for more in (["--steps-per-epoch", 2 * steps], ["--steps-per-epoch", steps - 1, "--time-budget", "1h"]):
        assert "contradicts the run" in gen(*words, *more).err


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
    plan = fit_into(quick(), 0.25 * seconds(quick()), 10, SPEED)
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
    for dry in (["--dry-run"], []):
        done = gen("train", "--out", run, "--arch", FACTORY, "--resume", "--time-budget", "1s", *dry)
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
