"""Generator training: phases, gradients, resuming, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from clusterq_common.errors import ClusterqError
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_gen.presets import PRESETS, preset_notes, resolve
from clusterq_gen.training import loop
from clusterq_gen.training.loop import train_generator, train_step
from clusterq_gen.training.state import Training
from tests.conftest import FACTORY, Cli
from tests.gen.conftest import CPU, small


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_phases_and_what_is_recorded(teacher: Teacher, tmp_path: Path) -> None:
    config = small(teacher, train={"gradient_norm_every": 2})
    run = train_generator(config, teacher, tmp_path, CPU, resume=False)
    recorded = records(tmp_path)
    assert [record["step"] for record in recorded] == list(range(12))
    warm = {"step", "loss/class", "loss/bns", "loss/spread", "teacher/accuracy", "lr"}
    assert set(recorded[1]) == warm
    assert set(recorded[5]) == warm | {
        "loss/fda",
        "loss/de",
        "centroids/drift",
        "student/ce",
        "student/kl",
        "student/agreement",
    }
    assert {key for key in recorded[6] if key.startswith("gradient/")} == {
        f"gradient/{n}" for n in ("class", "bns", "spread", "fda", "de")
    }
    assert all(recorded[6][f"gradient/{name}"] > 0 for name in ("class", "bns", "spread"))
    layers = {key for key in recorded[6] if key.startswith("drift/")}
    assert run.centroids is not None
    assert layers == {f"drift/{name}" for name in run.centroids.layers.names}
    assert all((recorded[6][key] > 0) == (recorded[6]["centroids/drift"] > 0) for key in layers)
    assert not any(key.startswith("drift/") for key in recorded[7])
    assert run.centroids.mean.abs().sum() > 0
    for name in ("generator.safetensors", "student.safetensors", "checkpoints/last.pt", "samples/epoch-0003.png"):
        assert (tmp_path / name).is_file(), name
    assert not list(tmp_path.rglob("*.partial"))


def test_gdfq_has_no_centroids_and_no_alignment(teacher: Teacher, tmp_path: Path) -> None:
    run = train_generator(small(teacher, method={"method": "gdfq"}), teacher, tmp_path, CPU, resume=False)
    assert run.centroids is None
    assert run.student is not None
    assert "loss/fda" not in records(tmp_path)[-1]


def test_the_students_answer_moves_the_generator_but_not_the_student(teacher: Teacher) -> None:
    run = Training.start(small(teacher, method={"method": "adadfq"}, quant={"range": "lsq"}), teacher, CPU)
    assert run.opponent_logits(torch.zeros(2, 1, 8, 8)) is None, "there is none in warm-up"
    run.end_warmup(log=lambda _: None)
    assert run.student is not None
    images = torch.randn(5, 1, 8, 8, requires_grad=True)
    logits = run.opponent_logits(images)
    assert logits is not None
    torch.testing.assert_close(logits, run.student(images))
    logits.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in run.student.parameters())


@pytest.mark.parametrize(("method", "asked"), [("clusterq", 1), ("gdfq", 1), ("adadfq", 2)])
def test_the_student_is_asked_no_more_often_than_the_method_needs(teacher: Teacher, method: str, asked: int) -> None:
    run = Training.start(small(teacher, method={"method": method}), teacher, CPU)
    run.end_warmup(log=lambda _: None)
    assert run.student is not None
    calls: list[int] = []
    run.student.register_forward_pre_hook(lambda *_: calls.append(1))
    with batchnorm_taps(teacher.model) as taps:
        run.step = 5
        train_step(run, taps, run.stored_statistics())
    assert len(calls) == asked


def test_losses_fall_and_the_teacher_recognises_its_classes(digits_run: Path) -> None:
    recorded = records(digits_run)
    first, last = recorded[:10], recorded[-10:]
    assert sum(r["loss/class"] for r in last) < 0.6 * sum(r["loss/class"] for r in first)
    assert sum(r["teacher/accuracy"] for r in last) / 10 > 0.5


@pytest.mark.parametrize("conditioning", ["concat", "scaled", "sum"])
def test_the_class_is_learned_within_a_few_steps(teacher: Teacher, conditioning: str) -> None:
    """As noise times embedding has it, the teacher sees the class asked for in 12 % of the images after these steps: chance."""
    train = {"steps_per_epoch": 30, "batch_size": 40}
    config = small(teacher, method={"alpha_spread": 0}, train=train, generator={"conditioning": conditioning})
    run = Training.start(config, teacher, CPU)
    with batchnorm_taps(teacher.model) as taps:
        stored = run.stored_statistics()
        for run.step in range(30):
            values = train_step(run, taps, stored)
    assert float(values["teacher/accuracy"]) > 0.8


def test_term_by_term_gradient_is_the_gradient(teacher: Teacher) -> None:
    """Steps on which norms are recorded must move the generator as other steps do."""
    moved = []
    for every in (1, 10_000):
        run = Training.start(small(teacher, train={"gradient_norm_every": every}), teacher, CPU)
        with batchnorm_taps(teacher.model) as taps:
            run.step = 4
            run.end_warmup()
            run.step = 5
            train_step(run, taps, run.stored_statistics())
        moved.append(torch.cat([parameter.grad.flatten() for parameter in run.generator.parameters()]))
    assert moved[0].norm() > 0
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", [{}, {"method": "adadfq"}, {"mix_probability": 0.5}])
def test_resumed_run_equals_an_uninterrupted_one(
    method: dict[str, object], teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(teacher, method=method)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = train_generator(config, teacher, tmp_path / "whole", CPU, resume=False)
    for stop in (3, 6, 10):  # in warm-up, after it, and at the very end
        calls = []

        def step_then_stop(*arguments: object, stop: int = stop, calls: list[int] = calls) -> object:
            run = arguments[0]
            assert isinstance(run, Training)
            if run.step == stop and not calls:
                calls.append(stop)
                raise KeyboardInterrupt
            return train_step(*arguments)

        monkeypatch.setattr(loop, "train_step", step_then_stop)
        with pytest.raises(KeyboardInterrupt):
            train_generator(config, teacher, tmp_path / "cut", CPU, resume=True)
    monkeypatch.setattr(loop, "train_step", train_step)
    resumed = train_generator(config, teacher, tmp_path / "cut", CPU, resume=True)
    for name, value in whole.generator.state_dict().items():
        assert torch.equal(value, resumed.generator.state_dict()[name]), name
    assert whole.student is not None
    assert resumed.student is not None
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_nan_stops_the_run_and_keeps_the_checkpoint(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(run: Training, *rest: object) -> object:
        metrics = train_step(run, *rest)
        return {**metrics, "loss/class": torch.tensor(float("nan"))} if run.step == 6 else metrics

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(ClusterqError, match=r"loss/class became nan at step 6.*last\.pt.*smaller lr\."):
        train_generator(small(teacher), teacher, tmp_path, CPU, resume=False)
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["step"] == 4
    assert not (tmp_path / "generator.safetensors").exists()


def test_start_layer_beyond_the_last_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(ClusterqError, match=r"^start_layer: start_layer 99"):
        train_generator(small(teacher, method={"start_layer": 99}), teacher, tmp_path, CPU, resume=False)


def test_schedules(teacher: Teacher) -> None:
    def rates(at: tuple[int, ...], **train: object) -> list[float]:
        run = Training.start(small(teacher, train={"lr": 1.0, "steps_per_epoch": 1, **train}), teacher, CPU)
        scheduled = []
        for epoch in at:
            run.set_learning_rates(epoch)
            scheduled.append(float(run.optimizer.param_groups[0]["lr"]))
        return scheduled

    by_step = rates((0, 99, 100, 250, 399), schedule="step", epochs=400)
    assert by_step == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    assert rates((0, 5), schedule="cosine", epochs=10, warmup_epochs=1) == pytest.approx([1, 0.5])


def test_presets_and_precedence() -> None:
    arch = {"teacher": {"arch": "resnet18"}}
    assert resolve(arch, "auto", imagenet_sized=True).train.batch_size == 16
    assert resolve(arch, "auto", imagenet_sized=False).train.batch_size == 200
    paper = resolve(arch, "paper-cifar", imagenet_sized=False)
    assert (paper.train.epochs, paper.train.warmup_epochs, paper.method.alpha_fda, paper.method.ema_rate) == (400, 50, 0.9, 0.2)
    quick = resolve({**arch, "train": {"batch_size": 7}}, "quick", imagenet_sized=False)
    assert quick.train.batch_size == 7
    assert quick.train.epochs == PRESETS["quick"]["train"]["epochs"]
    assert resolve({**arch, "train": {"epochs": 40}}, "paper-cifar", imagenet_sized=False).train.warmup_epochs == 5
    assert "paper-imagenet: 16" in preset_notes()["train"]["batch_size"]
    with pytest.raises(ClusterqError, match="arch is missing"):
        resolve({}, "quick", imagenet_sized=False)


@pytest.mark.parametrize("method", [{}, {"method": "adadfq", "mix_probability": 0.5}])
def test_bf16_autocast_trains_too(method: dict[str, object], teacher: Teacher, tmp_path: Path) -> None:
    run = train_generator(small(teacher, method=method, runtime={"amp": "bf16"}), teacher, tmp_path, CPU, resume=False)
    assert run.step == 12
    assert all(parameter.dtype == torch.float32 for parameter in run.generator.parameters())


@pytest.mark.parametrize(
    ("asked", "classes", "wanted"),
    [
        ({}, 10, (128, 12)),
        ({}, 100, (25, 2)),
        ({}, 5000, (1, 1)),
        ({"per_class": 50}, 100, (50, 5)),
        ({"images": 500}, 100, (5, 1)),
        ({"images": 500, "heldout_per_class": 0}, 10, (50, 0)),
        ({"images": 10_000}, 10, (128, 12)),
    ],
)
def test_quick_is_bounded_in_images_altogether(asked: dict[str, int], classes: int, wanted: tuple[int, int]) -> None:
    emit = resolve({"teacher": {"arch": "resnet18"}, "emit": asked}, "quick", imagenet_sized=False).emit
    assert emit.wanted(classes) == dict(zip(("train", "heldout"), wanted, strict=True))


def test_a_number_for_each_class_lifts_a_saved_limit(digits_run: Path, tmp_path: Path, gen: Cli) -> None:
    run = tmp_path / "run"
    shutil.copytree(digits_run, run, ignore=shutil.ignore_patterns("shards"))
    saved = yaml.safe_load((run / "config.yaml").read_text())
    saved["emit"] |= {"per_class": 12, "images": 20}
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    for flags, each in (([], 2), (["--per-class", 3], 3)):
        done = gen("emit", "--run", run, "--arch", FACTORY, *flags, "--out", tmp_path / f"{each}")
        assert done.code == 0, done.err
        assert read_manifest(tmp_path / f"{each}").splits["train"].per_class == [each] * 10
