"""Time budgets of fine-tunings: plans by arithmetic, and a run through the command line."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.time_budget import Phase, total_seconds
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune.budget import fit_into
from clusterq_finetune.config import FinetuneConfig, resolve
from clusterq_finetune.estimate import Speed, Timed, phases
from tests.conftest import Cli

SPEED = Speed(
    forward=0.001, student_forward=0.002, calibrated=0.01, block_images=0.01, block_step=0.5, step=0.2, epoch=2.0, decoded=0.001
)
SAMPLES = 1280


def estimate(config: FinetuneConfig) -> list[Phase]:
    return phases(config, SAMPLES, 20, 1000, SPEED)


def fast(**recipe: object) -> FinetuneConfig:
    return resolve({"recipe": recipe}, "s", TeacherConfig(arch="resnet18"))


def test_phases_by_hand() -> None:
    seconds = {phase.name: phase.seconds for phase in estimate(fast())}
    expected = {"calibration": 10.24, "reconstruction": 10.24 + 125, "fine-tuning": 5 * (40 * 0.2 + 2), "evaluation": 6.0}
    assert seconds == pytest.approx(expected)
    chosen = fast().model_copy(update={"choice": fast().choice.model_copy(update={"average_bits": 4.0})})
    assert estimate(chosen)[0] == ("choice of bits", pytest.approx(7 * 20 * 256 * 0.001))
    few = phases(chosen, 100, 20, 0, SPEED)[0]
    assert few.seconds == pytest.approx(7 * 20 * 100 * 0.001), "no more images than the set has"
    dropped = fast().model_copy(update={"choice": fast().choice.model_copy(update={"max_drop": 1.0})})
    # Six students, each calibrated and measured on the held-out images.
    assert estimate(dropped)[0].seconds == pytest.approx(7 * 20 * 256 * 0.001 + 6 * (10.24 + 2))
    assert [phase.name for phase in phases(fast(epochs=0, reconstruct="none"), SAMPLES, 20, 0, SPEED)] == ["calibration"]


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
    """On a machine that measures 15 ms for a step, which is more than it takes: 2000 steps do not fit into ten seconds, some hundreds do."""
    words = ["--shards", digits_run, "--bits", "w4a4", "--recipe", "fast", "--reconstruct-steps", 2000]
    words += ["--epochs", 1, "--steps-per-epoch", 4, "--reconstruct-images", 32, "--calibration-images", 32]
    done = finetune(*words, "--dry-run", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert re.search(r"^time: about .* \(calibration .*, reconstruction .*, fine-tuning .*\)$", done.out, re.MULTILINE)
    phases = ("student", "reconstruction's checkpoint", "fine-tuning's checkpoint")
    told = [re.findall(rf"^disk: at most about .*{phase} ([\d.]+) ([kM])B", done.out, re.MULTILINE)[0] for phase in phases]
    assert not (tmp_path / "out").exists()
    measure = Timed._measure

    def slower(timed: Timed, config: FinetuneConfig) -> Speed:
        speed = measure(timed, config)
        return replace(speed, block_step=0.015)

    monkeypatch.setattr(Timed, "_measure", slower)
    done = finetune(*words, "--time-budget", "10s", "--out", tmp_path / "out")
    assert done.code == 0, done.err
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
