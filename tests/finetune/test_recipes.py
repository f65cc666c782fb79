"""Parts of the recipes: optimizers, schedules, weight means, selection, BatchNorm statistics, whose logits."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert, quantizers
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune.config import RECIPES, RecipeConfig, recipe_notes, resolve
from clusterq_finetune.recipes.ema import WeightEma
from clusterq_finetune.recipes.heldout import Selection
from clusterq_finetune.recipes.optimizer import build_optimizer, learning_rate
from clusterq_finetune.recipes.recalibrate import recalibrate_batchnorm
from clusterq_finetune.recipes.relative_lr import RelativeSteps
from tests.conftest import Cli

CPU = torch.device("cpu")
TEACHER = TeacherConfig(arch="resnet18")
# A short fine-tuning by name, with flags: its folder and its result.
Short = Callable[..., tuple[Path, dict[str, Any]]]


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


def small_student(quant: QuantConfig | None = None) -> nn.Module:
    config = quant or QuantConfig()
    student = convert(small_net(), config, torch.zeros(1, 2, 8, 8), lambda _: None)
    calibrate(student, [torch.randn(16, 2, 8, 8)], config)
    return student.eval()


def test_recipes_and_precedence() -> None:
    fast, best = (resolve({"recipe": given}, "s", TEACHER).recipe for given in ({}, {"recipe": "best"}))
    assert (
        (fast.recipe, fast.reconstruct, fast.select) == ("fast", best.reconstruct, best.select) == ("fast", "block", "guarded")
    )
    assert (2 * fast.reconstruct_steps, 2 * fast.epochs) == (best.reconstruct_steps, best.epochs), "half the cost"
    paper = resolve({"recipe": {"recipe": "paper"}}, "s", TEACHER).recipe
    assert (paper.ce_weight, paper.kl_weight, paper.temperature) == (1, 1, 20), "Eq. 9"
    assert (paper.optimizer, paper.lr, paper.schedule, paper.weight_decay) == ("sgd", 1e-4, "step", 1e-4)
    assert (paper.epochs, paper.steps_per_epoch, paper.batch_size) == (200, 200, 200)
    # Steps of an epoch: one pass (None), but forty where the set is small and nothing was asked for.
    asked = {None: RecipeConfig(), 0: RecipeConfig(steps_per_epoch=0), 7: RecipeConfig(steps_per_epoch=7)}
    assert [asked[None].steps(samples) for samples in (1, 39 * 128, 39 * 128 + 1)] == [40, 40, None]
    assert [asked[0].steps(samples) for samples in (1, 5120)] == [None, None]
    assert [asked[7].steps(samples) for samples in (1, 5120)] == [7, 7]
    large = resolve({"recipe": {"recipe": "paper"}}, "s", TEACHER, imagenet_sized=True).recipe
    assert (large.lr, large.batch_size) == (1e-6, 16)
    mine = resolve({"recipe": {"recipe": "paper", "lr": 0.5}}, "s", TEACHER, imagenet_sized=True).recipe
    assert (mine.lr, mine.batch_size) == (0.5, 16)
    for name, values in RECIPES.items():
        assert resolve({"recipe": {"recipe": name}}, "s", TEACHER).recipe.model_dump().items() >= values.items()
    assert "paper: sgd" in recipe_notes()["recipe"]["optimizer"]
    with pytest.raises(ClusterqError, match="stored belongs to the stored images"):
        resolve({"recipe": {"teacher_logits": "stored", "augment": "flip"}}, "s", TEACHER)
    with pytest.raises(ClusterqError, match="recipe"):
        resolve({"recipe": {"recipe": "slow"}}, "s", TEACHER)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_weight_decay_spares_batchnorm_biases_and_steps(kind: str) -> None:
    student = small_student()
    recipe = RecipeConfig(optimizer=kind, weight_decay=0.5, lr=0.1, lr_unit="absolute")
    optimizer = build_optimizer(student, recipe, torch.device("cpu"))
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert shrunk == {"0.weight", "3.weight", "8.weight"}
    for name in shrunk:
        # Nesterov's first step is 1 + momentum times the gradient.
        share = 0.1 * 0.5 * (1.9 if kind == "sgd" else 1.0)
        torch.testing.assert_close(student.get_parameter(name).detach(), before[name] * (1 - share))
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in student.parameters()}, "every parameter is trained"
    assert any(name.endswith("scale") for name in before), "learned steps among them"


def test_learning_rates() -> None:
    cosine = RecipeConfig(epochs=4, lr=0.2)
    assert [learning_rate(cosine, step, 5) for step in (0, 10, 20)] == pytest.approx([0.2, 0.1, 0.0])
    step = RecipeConfig(epochs=400, lr=1.0, schedule="step")
    assert [learning_rate(step, epoch * 3 + 2, 3) for epoch in (0, 99, 100, 250, 399)] == pytest.approx([1, 1, 0.1, 0.01, 1e-3])
    assert learning_rate(RecipeConfig(schedule="constant", lr=0.3), 999, 1) == 0.3
    rising = RecipeConfig(schedule="constant", lr=1.0, warmup_steps=3)
    assert [learning_rate(rising, step, 1) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_weight_mean_against_a_plain_loop() -> None:
    student = nn.Linear(3, 2)
    ema = WeightEma(student, 0.9)
    plain = student.weight.detach().clone().double()
    for step in range(40):
        with torch.no_grad():
            student.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        plain = decay * plain + (1 - decay) * student.weight.detach().double()
    last = student.weight.detach().clone()
    with ema.applied():
        torch.testing.assert_close(student.weight.detach().double(), plain, rtol=1e-5, atol=1e-6)
    assert torch.equal(student.weight, last), "training goes on from the weights themselves"
    other = WeightEma(nn.Linear(3, 2), 0.9)
    other.load_state_dict(ema.state_dict())
    other.finish()
    torch.testing.assert_close(other.parameters["weight"].detach().double(), plain, rtol=1e-5, atol=1e-6)
    without = WeightEma(student, 0.0)
    without.update(0)
    without.finish()
    assert torch.equal(student.weight, last)


def test_selection_keeps_the_best_and_only_that() -> None:
    student, selection = nn.Linear(2, 1), Selection()
    for epoch, kl in enumerate([3.0, 1.0, 2.0]):
        nn.init.constant_(student.weight, epoch)
        selection.offer(student, kl, epoch)
    again = Selection()
    again.load_state_dict(selection.state_dict())
    again.finish(student)
    assert again.epoch == 1
    assert student.weight.tolist() == [[1.0, 1.0]]


def test_recalibrated_statistics_are_those_of_the_student() -> None:
    student = small_student()
    images = [torch.randn(8, 2, 8, 8) * 2 + 1 for _ in range(4)]
    recalibrate_batchnorm(student, images, CPU)
    norm = student.get_submodule("1")
    assert not norm.training
    assert norm.momentum == 0.1
    with torch.no_grad():
        outputs = [student.get_submodule("0")(batch) for batch in images]
    mean = torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0)
    var = torch.stack([out.transpose(0, 1).flatten(1).var(1) for out in outputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)
    assert math.isfinite(float(student(images[0]).detach().sum()))


@pytest.fixture
def short(digits_run: Path, finetune: Cli, tmp_path: Path) -> Short:
    """A short fine-tuning with flags; returns its folder and result."""

    def run(name: str, *flags: object) -> tuple[Path, dict[str, Any]]:
        out = tmp_path / name
        base = ["--shards", digits_run, "--bits", "w3a3", "--batch-size", 32, "--lr", 0.003, "--out", out]
        done = finetune(*base, *flags)
        assert done.code == 0, done.err
        return out, json.loads((out / "result.json").read_text())

    return run


def heldout_values(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["heldout/kl"] for record in lines if "heldout/kl" in record]


def test_stored_and_recomputed_logits_give_nearly_the_same_student(short: Short) -> None:
    stored, printed = short("stored", "--epochs", 2, "--steps-per-epoch", 0)
    recomputed, asked = short("recomputed", "--epochs", 2, "--steps-per-epoch", 0, "--teacher-logits", "recomputed")
    assert printed["teacher_logits"]["source"] == "stored"
    assert 0 < printed["teacher_logits"]["largest_difference"] < printed["teacher_logits"]["tolerance"]
    assert asked["teacher_logits"]["source"] == "recomputed"
    assert printed["student"]["heldout/agreement"] == pytest.approx(asked["student"]["heldout/agreement"], abs=0.2)
    a, b = (load_file(folder / "student.safetensors") for folder in (stored, recomputed))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0.02, atol=0.02)
    _, result = short("augmented", "--epochs", 1, "--steps-per-epoch", 0, "--augment", "flip")
    assert result["teacher_logits"]["source"] == "recomputed", "stored logits do not belong to mirrored images"


def test_selection_by_held_out_images(short: Short) -> None:
    # A rate so high that the last epoch need not be the best one.
    flags = ("--epochs", 4, "--steps-per-epoch", 0, "--lr", 0.01, "--schedule", "constant")
    folder, result = short("heldout", *flags, "--select", "heldout")
    values = heldout_values(folder)
    assert result["student"]["epoch"] == values.index(min(values))
    _, last = short("last", *flags)
    assert last["student"]["epoch"] == 3
    same = result["student"]["sha256"] == last["student"]["sha256"]
    assert same == (result["student"]["epoch"] == 3)


def test_a_guarded_student_is_not_worse_than_it_was(short: Short, finetune: Cli, digits_run: Path, tmp_path: Path) -> None:
    steady = ("--epochs", 2, "--steps-per-epoch", 0, "--schedule", "constant")
    _, calibrated = short("calibrated", "--epochs", 0)
    _, kept = short("destroyed", *steady, "--lr", 5, "--select", "guarded")
    assert kept["student"]["epoch"] == -1
    assert kept["student"]["sha256"] == calibrated["student"]["sha256"]
    _, same = short("destroyed-too", *steady, "--lr", 5, "--select", "heldout")
    assert same["student"]["epoch"] == -1
    _, last = short("last", *steady)
    _, guarded = short("guarded", *steady, "--select", "guarded")
    assert guarded["student"]["epoch"] == 1
    assert guarded["student"]["sha256"] == last["student"]["sha256"], "a guard that has nothing to do changes nothing"


def test_paper_recipe_runs_and_is_recorded(short: Short) -> None:
    folder, result = short("paper", "--recipe", "paper", "--epochs", 2, "--steps-per-epoch", 6)
    recipe = result["settings"]["recipe"]
    assert (recipe["recipe"], recipe["optimizer"], recipe["schedule"], recipe["kl_weight"]) == ("paper", "sgd", "step", 1.0)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss/kl" in record for record in steps) == 12


def test_weight_mean_and_batchnorm_change_the_student_and_reload(short: Short, finetune: Cli) -> None:
    digests = set()
    changes = [("--weight-ema", 0.9), ("--batchnorm", "recalibrated"), ("--batchnorm", "corrected"), ("--weight-decay", 0.5)]
    for flags in ((), *changes):
        _, result = short("-".join(map(str, flags)) or "plain", "--epochs", 1, "--steps-per-epoch", 0, *flags)
        digests.add(result["student"]["sha256"])
    assert len(digests) == 5


def test_layer_bits(short: Short, digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    from clusterq_finetune.student import load_student

    folder, result = short("mixed", "--epochs", 1, "--steps-per-epoch", 0, "--layer-bits", "*=w2a2, 0=w8a6,1?=w4a5")
    assert result["settings"]["quant"]["layer_bits"] == ["*=w2a2", "0=w8a6", "1?=w4a5"]
    student, _, _ = load_student(folder, CPU)
    widths = {name: quantizer.bits for name, quantizer in quantizers(student).items()}
    assert widths.pop("0.input_quantizer") == 8, "the image keeps its eight bits"
    assert widths.pop("0.weight_quantizer") == 8
    assert {widths.pop("12.weight_quantizer"), widths.pop("17.weight_quantizer")} == {4}
    assert {widths.pop("12.input_quantizer"), widths.pop("17.input_quantizer")} == {5}
    assert set(widths.values()) == {2}
    wrong = finetune("--shards", digits_run, "--bits", "w4a4", "--layer-bits", "1x=w8a8", "--out", tmp_path / "no")
    assert wrong.code == 2
    assert "matches no layer of this model; did you mean" in wrong.err
    for text in ("0", "0=w9a9", "a=b=c"):
        bad = finetune("--shards", digits_run, "--layer-bits", text, "--out", tmp_path / "no")
        assert bad.code == 2, text
    assert not (tmp_path / "no").exists()


def test_relative_steps_leave_dead_channels_dead() -> None:
    student = small_student()
    with torch.no_grad():
        student.get_parameter("0.weight")[2] = 0
        student.get_parameter("3.weight").mul_(100)
    recipe = RecipeConfig(lr=0.01, lr_unit="relative")
    optimizer = build_optimizer(student, recipe, torch.device("cpu"))
    RelativeSteps(student, optimizer)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    for step in range(3):
        student(torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
    moved = {name: (p.detach() - before[name]) for name, p in student.named_parameters()}
    assert moved["0.weight"][2].abs().max() == 0
    for name in ("0.weight", "3.weight", "8.weight"):
        rows = before[name].flatten(1)
        relative = moved[name].flatten(1).abs().amax(1) / rows.square().mean(1).sqrt().clamp_min(1e-12)
        assert 0.01 < relative.max() <= 3.1 * 0.01, "Adam moves by at most about the rate"
    steps = [float((moved[name].abs() / before[name]).max()) for name in moved if name.endswith("scale")]
    assert len(steps) == 6, "of three layers' weights and inputs"
    assert 0.001 < max(steps) < 3.1 * 0.01
