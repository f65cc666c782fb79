"""From teacher and shards to a student in a program of one's own: silently, without a folder, and to the same bits as the command."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import clusterq as cq
from tests.conftest import Cli, DigitsTeacher

SHORT = cq.Recipe(epochs=1, steps_per_epoch=0, batch_size=32)


def calibrated(teacher: cq.Teacher, shards: cq.ShardSet, bits: str = "w3a3") -> nn.Module:
    student = cq.convert(teacher.model, cq.QuantConfig(bits=bits), teacher.spec.example())
    cq.calibrate(student, shards.images("train", limit=1024, batch_size=32, seed=1), seed=1)
    return student


def same(first: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return first.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in first.items())


def test_the_whole_job(
    teacher: cq.Teacher, shards: cq.ShardSet, digits_teacher: DigitsTeacher, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    student = cq.convert(teacher.model, cq.QuantConfig(bits="w4a4"), teacher.spec.example())
    cq.calibrate(student, shards.images("train", limit=64))
    cq.distill(student, teacher, shards, cq.Recipe(epochs=1, steps_per_epoch=4))
    images = cq.open_images(digits_teacher.val, teacher.spec)
    evaluated = cq.evaluate(student, images, teacher=teacher)
    assert evaluated.top1 > 80
    assert evaluated.agreement is not None
    assert not evaluated.unreadable
    cq.export_onnx(student, teacher.spec, tmp_path / "student.onnx")
    with cq.integer_arithmetic(student):
        assert cq.evaluate(student, images).top1 == pytest.approx(evaluated.top1, abs=2)

    labels = torch.arange(10) % 5
    with cq.batchnorm_taps(teacher.model) as taps:
        teacher.model(next(iter(shards.images(limit=10))))
        per_class = [layer.by_class(cq.ClassGroups.of(labels)) for layer in taps]
    assert [len(layer.count) for layer in per_class] == [5] * 5
    assert capfd.readouterr() == ("", "")

    from clusterq_common.export.runtime import OnnxModel

    exported = OnnxModel(tmp_path / "student.onnx")
    batch = next(iter(shards.images(limit=32)))
    assert (exported(batch).argmax(1) == student(batch).argmax(1)).float().mean() > 0.9
    assert exported.description.bits == "w4a4"
    assert cq.evaluate(exported, images).top1 == pytest.approx(evaluated.top1, abs=2)


def test_bits_are_chosen(teacher: cq.Teacher, shards: cq.ShardSet) -> None:
    choice = cq.choose_bits(teacher, shards, cq.QuantConfig(bits="w4a8"), average_bits=3.5, sensitivity_images=20)
    widths = [int(entry.rpartition("=w")[2].partition("a")[0]) for entry in choice.layer_bits]
    assert len(set(widths)) > 1
    assert {entry[-2:] for entry in choice.layer_bits} == {"a8"}
    with pytest.raises(cq.ClusterqError, match="nothing is asked for"):
        cq.choose_bits(teacher, shards)


def test_distill_is_the_commands_to_the_bit(
    teacher: cq.Teacher, shards: cq.ShardSet, digits_run: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--bits", "w3a3", "--epochs", 1, "--steps-per-epoch", 0, "--batch-size", 32, "--seed", 1)
    done = finetune("--shards", digits_run, *flags, "--no-report", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    student = calibrated(teacher, shards)
    records = cq.distill(student, teacher, shards, SHORT, seed=1)
    assert same(student.state_dict(), load_file(tmp_path / "run" / "student.safetensors"))
    assert records == [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    saved, spec = cq.load_student(tmp_path / "run")
    assert same(student.state_dict(), saved.state_dict())
    assert spec == teacher.spec
    assert not list(Path.cwd().iterdir()), "nothing is written"


def test_finetune_is_the_command_to_the_bit(
    teacher: cq.Teacher,
    shards: cq.ShardSet,
    digits_run: Path,
    finetune: Cli,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"epochs": 1, "steps_per_epoch": 2, "reconstruct_steps": 5, "reconstruct_images": 32}
    flags = [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = finetune(
        "--shards", digits_run, "--recipe", "fast", "--bits", "w3a3", *flags, "--no-report", "--out", tmp_path / "run"
    )
    assert done.code == 0, done.err
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    capfd.readouterr()
    quant, recipe = cq.QuantConfig(bits="w3a3"), cq.Recipe.fast(**changes)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    student = cq.finetune(teacher, shards, quant, recipe)
    assert capfd.readouterr() == ("", "")
    assert not list(Path.cwd().iterdir())
    assert same(student.state_dict(), load_file(tmp_path / "run" / "student.safetensors"))
    assert same(teacher.model.state_dict(), before)

    logged: list[str] = []
    told: list[tuple[str, int, int]] = []
    again = cq.finetune(teacher, shards, quant, recipe, log=logged.append, progress=lambda *values: told.append(values))
    assert same(again.state_dict(), student.state_dict())
    assert any("quantized 6 layers" in line for line in logged)
    assert not any("--" in line for line in logged)
    assert {what for what, _, _ in told} == {"calibrating", "reconstructing", "fine-tuning"}
    assert told[-1] == ("fine-tuning", 2, 2)
    assert capfd.readouterr() == ("", "")


def test_reconstruct_learns_rounding_without_a_folder(
    teacher: cq.Teacher, shards: cq.ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    student = calibrated(teacher, shards, "w2a4")
    nearest = copy.deepcopy(student.state_dict())
    capfd.readouterr()
    blocks = cq.reconstruct(student, teacher, shards, cq.Recipe(reconstruct="block", reconstruct_steps=20))
    assert [entry["block"] for entry in blocks] == ["0", "3", "6", "9", "12", "17"]
    assert sum(entry["after"] for entry in blocks) < sum(entry["before"] for entry in blocks)
    assert not same(student.state_dict(), nearest)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_recipes_by_name() -> None:
    from clusterq_common.teacher.spec import TeacherConfig
    from clusterq_finetune.config import resolve

    teacher = TeacherConfig(arch="resnet18")
    for name, large in (("fast", False), ("best", False), ("paper", False), ("paper", True)):
        wanted = resolve({"recipe": {"recipe": name, "lr": 0.5}}, "s", teacher, imagenet_sized=large).recipe
        more = {"imagenet_sized": True} if large else {}
        assert getattr(cq.Recipe, name)(lr=0.5, **more) == wanted
    assert (cq.Recipe.calibrated().epochs, cq.Recipe.calibrated().reconstruct) == (0, "none")


def test_a_network_in_memory_is_a_teacher(teacher: cq.Teacher) -> None:
    held = cq.Teacher.of(copy.deepcopy(teacher.model).train(), teacher.spec)
    assert held.digest == teacher.digest
    assert not held.model.training
    assert held.config.arch == "torch.nn.modules.container:Sequential"
    with pytest.raises(cq.ClusterqError, match="no BatchNorm"):
        cq.Teacher.of(nn.Flatten(), teacher.spec)
