"""Time budgets of fine-tunings: plans by arithmetic, and a run through the command line."""

import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.progress import console
from clusterq_common.progress.console import progress
from clusterq_common.progress.time_budget import Phase, total_seconds
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_finetune.budget import fit_into, plan_within
from clusterq_finetune.config import FinetuneConfig, resolve
from clusterq_finetune.estimate import Sizes, Timed, is_worth_measuring, phases
from clusterq_finetune.recipes import distill
from clusterq_finetune.speed import Speed
from clusterq_finetune.step_times import StepTimes, one_of_each
from tests.conftest import Cli

SPEED = Speed(
    forward=0.001,
    student_forward=0.002,
    ranges=1.0,
    calibrated=0.01,
    block_images=0.01,
    block_step=0.5,
    step=0.2,
    read=0.0005,
    decoded=0.001,
)
SAMPLES = 1280
SIZES = Sizes(SAMPLES, heldout=100, real_images=1000, layers=20, resident=True)


def estimate(config: FinetuneConfig) -> list[Phase]:
    return phases(config, SIZES, SPEED)


def fast(**recipe: object) -> FinetuneConfig:
    return resolve({"recipe": recipe}, "s", TeacherConfig(arch="resnet18"))


def test_phases_by_hand() -> None:
    seconds = {phase.name: phase.seconds for phase in estimate(fast())}
    # The held-out images are measured before the first epoch, too, and the training images read once.
    tuning = 5 * 40 * 0.2 + 6 * 0.25 + 0.64
    expected = {"calibration": 11.24, "reconstruction": 10.24 + 125, "fine-tuning": tuning, "evaluation": 6.0, "report": 4.28}
    assert seconds == pytest.approx(expected)
    read = phases(fast(workers=2), SIZES._replace(resident=False), SPEED)
    assert read[2].seconds == pytest.approx(tuning - 0.64 + 5 * 40 * fast().recipe.batch_size * 0.0005 / 2)
    chosen = fast().model_copy(update={"choice": fast().choice.model_copy(update={"average_bits": 4.0})})
    assert estimate(chosen)[0] == ("choice of bits", pytest.approx(7 * 20 * 256 * 0.001))
    few = phases(chosen, SIZES._replace(samples=100), SPEED)[0]
    assert few.seconds == pytest.approx(7 * 20 * 100 * 0.001), "no more images than the set has"
    dropped = fast().model_copy(update={"choice": fast().choice.model_copy(update={"max_drop": 1.0})})
    # Six students, each calibrated and measured on the held-out images.
    assert estimate(dropped)[0].seconds == pytest.approx(7 * 20 * 256 * 0.001 + 6 * (11.24 + 0.25))
    plain = phases(fast(epochs=0, reconstruct="none"), SIZES._replace(real_images=0), SPEED)
    assert [phase.name for phase in plain] == ["calibration", "report"]


@pytest.mark.parametrize("share", [2, 1.2, 0.8, 0.5, 0.35])
@pytest.mark.parametrize("recipe", ["fast", "best", "paper"])
def test_a_plan_fits_and_is_the_largest(recipe: str, share: float) -> None:
    config = fast(recipe=recipe)
    budget = share * total_seconds(estimate(config))
    plan = fit_into(config, budget, SAMPLES, estimate)
    assert total_seconds(estimate(plan)) <= 0.9 * budget
    if share >= 1.2:
        assert plan == config, "a plan grows only where it may"
    else:
        assert total_seconds(estimate(plan)) > 0.7 * 0.9 * budget


@pytest.mark.parametrize("recipe", ["fast", "best"])
def test_time_that_is_left_goes_into_the_reconstruction(recipe: str) -> None:
    config = fast(recipe=recipe)
    own, needed = config.recipe.reconstruct_steps, total_seconds(estimate(config))
    plan = fit_into(config, 1.8 * needed, SAMPLES, estimate, grow=True)
    assert own < plan.recipe.reconstruct_steps < 1000
    assert 0.8 * 0.9 * 1.8 * needed < total_seconds(estimate(plan)) <= 0.9 * 1.8 * needed
    assert plan.recipe.epochs == config.recipe.epochs
    assert fit_into(config, 100 * needed, SAMPLES, estimate, grow=True).recipe.reconstruct_steps == 1000
    assert fit_into(config, 0.5 * needed, SAMPLES, estimate, grow=True) == fit_into(config, 0.5 * needed, SAMPLES, estimate)


def test_a_plan_grows_neither_without_reconstruction_nor_beyond_a_given_number() -> None:
    for config in (fast(reconstruct="none"), fast(recipe="paper"), fast(recipe="calibrated"), fast(reconstruct_steps=3000)):
        assert fit_into(config, 100 * total_seconds(estimate(config)), SAMPLES, estimate, grow=True) == config


def test_too_short() -> None:
    with pytest.raises(ClusterqError, match=r"too short on this machine.*reconstruct=none epochs=0"):
        fit_into(fast(), 20, SAMPLES, estimate)
    with pytest.raises(ClusterqError, match="or use a faster machine"):
        fit_into(fast(epochs=0, reconstruct="none"), 5, SAMPLES, estimate)


def test_through_the_command_line(finetune: Cli, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that measures 100 ms for a step, which is more than it takes: 2000 steps do not fit into ten seconds, some dozens do."""
    words = ["--shards", digits_run, "--bits", "w4a4", "--recipe", "fast", "--reconstruct-steps", 2000]
    words += ["--epochs", 1, "--steps-per-epoch", 4, "--reconstruct-images", 32, "--calibration-images", 32]
    done = finetune(*words, "--dry-run", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert re.search(r"^time: about .* \(calibration .*, reconstruction .*, fine-tuning .*\)$", done.out, re.MULTILINE)
    phases = ("student", "reconstruction's checkpoint", "fine-tuning's checkpoint")
    told = [re.findall(rf"^disk: at most about .*{phase} ([\d.]+) ([kM])B", done.out, re.MULTILINE)[0] for phase in phases]
    assert not (tmp_path / "out").exists()
    measure = Timed._measure

    def slowed(timed: Timed, config: FinetuneConfig) -> Speed:
        speed = measure(timed, config)
        return replace(speed, block_step=0.1)

    monkeypatch.setattr(Timed, "_measure", slowed)
    shown: list[str] = []
    after = console._seconds_after

    def seconds_after(phase: str) -> float:
        shown.append(phase)
        return after(phase)

    monkeypatch.setattr(console, "_seconds_after", seconds_after)
    done = finetune(*words, "--time-budget", "10s", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    phases = ["calibration", "reconstruction", "fine-tuning"]
    assert shown[-3:] == phases, "the display of each says what follows it"
    recipe = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["recipe"]
    assert 25 <= recipe["reconstruct_steps"] < 2000
    written = [
        tmp_path / "out" / name for name in ("student.safetensors", "checkpoints/reconstructed.pt", "checkpoints/last.pt")
    ]
    for (number, unit), path in zip(told, written, strict=True):
        # Files also name each tensor, and what is said of the last one is the most that it can be.
        assert 0.6 <= path.stat().st_size / (float(number) * {"k": 1e3, "M": 1e6}[unit]) < 1.4, path
    # The same command with --resume goes on with that plan, whatever the machine does now.
    done = finetune(*words, "--time-budget", "10s", "--resume", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "keeps the plan that it was started with" in done.err
    assert "fine-tuning on cpu, from its start: about " in done.err, "a resumed run says what is still to come, too"


class FromList(Timed):
    """Measurements from a list instead of a machine."""

    sizes = SIZES

    def __init__(self, *speeds: Speed) -> None:
        self._speeds, self._speed = iter(speeds), None

    def _measure(self, config: FinetuneConfig) -> Speed:
        return next(self._speeds)


def slower(times: float) -> Speed:
    return Speed(**{name: times * seconds for name, seconds in asdict(SPEED).items()})


def test_a_disturbed_measurement_neither_refuses_a_budget_nor_makes_a_plan_small() -> None:
    config = fast()
    budget = 1.2 * total_seconds(estimate(config))
    for speeds in ((slower(14), SPEED), (slower(14), slower(14), SPEED)):
        assert plan_within(config, 0.4 * budget, FromList(*speeds)) == fit_into(config, 0.4 * budget, SAMPLES, estimate)
    assert plan_within(config, budget, FromList(slower(1.4), SPEED)) == config
    with pytest.raises(
        ClusterqError, match=r"\(measured 3 times, the fastest of each: calibrating on one image 0\.01 s,.*allow "
    ):
        plan_within(config, 20, FromList(SPEED, SPEED, SPEED))


def test_what_is_left_of_an_accepted_budget_is_never_refused(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_within(fast(), 20, FromList(SPEED, SPEED, SPEED), accepted=True)
    assert (plan.recipe.reconstruct_steps, plan.recipe.epochs, plan.recipe.steps_per_epoch) == (25, 1, 20)
    assert "too short on this machine" in capsys.readouterr().err


def test_steps_are_told_apart_from_what_comes_between_them() -> None:
    # Two parts of three steps: the fastest step after the first one of each.
    assert one_of_each([10, 11, 13, 50, 53, 54], 3) == 1 + 1

    def training() -> None:
        with progress("training", 6) as ticker:
            for step in range(6):
                time.sleep(0.05 if step % 3 == 0 else 0.01)
                ticker.advance()

    times = StepTimes.of(training, torch.device("cpu"), steps=3)
    assert 0.02 <= times.typical < 0.05
    assert 0.08 <= times.besides < 0.2


def test_an_estimate_reads_few_images(finetune: Cli, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for any number of the set's images; and none of them is held out."""
    sets: list[tuple[int, list[str]]] = []
    train = distill.distill

    def seen(student: nn.Module, teacher: Teacher, shards: ShardSet, *rest: Any, **more: Any) -> dict[str, Any]:
        sets.append((len(shards.split("train")), list(shards.manifest.splits)))
        return train(student, teacher, shards, *rest, **more)

    monkeypatch.setattr("clusterq_finetune.speed.distill", seen)
    monkeypatch.setattr("clusterq_finetune.speed.MEASURED_PIXELS", 256)
    done = finetune("--shards", digits_run, "--bits", "w4a4", "--dry-run", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert sets == [(4, ["train"])] * 2, "digits have 64 pixels"


def test_long_runs_are_estimated_unasked() -> None:
    small = InputSpec(size=32, channels=3, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    large = small.model_copy(update={"size": 224})
    few = fast(epochs=1, steps_per_epoch=10, reconstruct="none", calibration_images=64)
    assert [is_worth_measuring(few, spec, SAMPLES) for spec in (small, large)] == [False, True]
    assert is_worth_measuring(fast(), small, SAMPLES)
    assert [is_worth_measuring(fast(recipe="calibrated"), spec, SAMPLES) for spec in (small, large)] == [False, True]
