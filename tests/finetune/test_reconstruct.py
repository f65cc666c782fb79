"""Blocks reconstruct what the teacher gives: on small networks and from the command line."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clusterq_common.device.distributed import process_group
from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.network_input import to_network_input
from clusterq_finetune.recipes import reconstruct as recipe
from clusterq_finetune.recipes.block_data import BlockData
from clusterq_finetune.recipes.block_steps import annealed_beta, relative_error, rounded_layers
from clusterq_finetune.recipes.reconstruct import reconstruct
from clusterq_finetune.student import load_student
from tests.conftest import Cli, DigitsTeacher
from tests.finetune.small_student import SPEC, parts_of, pixels, prepared, settings, small_net
from tests.several import in_processes

CPU = torch.device("cpu")


def reconstructed(config: FinetuneConfig, folder: Path, *, resume: bool = False) -> tuple[nn.Module, list[dict[str, object]]]:
    student, teacher = prepared(config)
    return student, reconstruct(student, teacher, pixels(64), config, folder, CPU, resume=resume)


def test_annealing() -> None:
    assert annealed_beta(19, 100) is None
    assert annealed_beta(20, 100) == 20
    assert annealed_beta(60, 100) == pytest.approx(11)
    assert annealed_beta(99, 100) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize(
    "quant",
    [
        {"bits": "w2a4"},
        {"bits": "w3a3", "quantizer": "asymmetric", "range": "mse"},
        {"bits": "w3a4", "weight_granularity": "tensor", "activation_sites": "relu"},
        {"bits": "w2a8", "branch_outputs": True, "layer_bits": "3.deep=w32a32"},
    ],
)
def test_reconstruction_beats_rounding_to_nearest(quant: dict[str, object], tmp_path: Path) -> None:
    config = settings(quant)
    nearest, teacher = prepared(config)
    student, result = reconstructed(config, tmp_path)
    blocks, _, _ = parts_of(teacher.model, 8, 2, "block")
    assert [entry["block"] for entry in result] == [str(block) for block in blocks]
    for block in blocks:
        # Both get what the reconstructed student gives before the block: only the block differs.
        data = BlockData(teacher.model, student, block, pixels(64), SPEC, CPU, 1e9)
        better, worse = (relative_error(block.of(network), data) for network in (student, nearest))
        # The last layer has 32 weights: there may be nothing to gain.
        assert better <= worse if block is blocks[-1] else better < 0.95 * worse, block
    for name, layer in rounded_layers(student).items():
        quantizer = layer.weight_quantizer
        assert quantizer is not None
        if name != "7":
            assert torch.equal(quantizer(layer.weight), layer.weight), f"{name} lies on its grid"
        before = nearest.get_submodule(name)
        moved = quantizer.to_int(layer.weight).integers - before.weight_quantizer.to_int(before.weight).integers
        assert moved.abs().max() <= 1, "up or down, no further"
    assert all(parameter.requires_grad for parameter in student.parameters())
    for name, value in student.state_dict().items():
        if "quantizer" not in name and not name.endswith("weight"):
            assert torch.equal(value, nearest.state_dict()[name]), f"{name} is no part of it"


def test_a_block_that_got_worse_is_left_as_it_was(tmp_path: Path) -> None:
    config = settings(reconstruct_steps=10, reconstruct_lr=1e-6, weight_step_lr=3.0)
    nearest, _ = prepared(config)
    student, result = reconstructed(config, tmp_path)
    assert all(entry["after"] == entry["before"] for entry in result)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in nearest.state_dict().items())


def test_rates_too_high_are_said(tmp_path: Path) -> None:
    with pytest.raises(ClusterqError, match=r"reconstruction error of 0 became (nan|inf)"):
        reconstructed(settings(reconstruct_steps=5, weight_step_lr=1e4), tmp_path)
    assert not (tmp_path / recipe.RECONSTRUCTED).exists()


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_corrected_statistics_follow_each_block(drop: float, tmp_path: Path) -> None:
    """The block's BatchNorm gives the teacher's moments with the rounding that it ends with, on the student's own inputs."""
    config = settings({"bits": "w2a8"}, batchnorm="corrected", drop_probability=drop)
    student, _ = reconstructed(config, tmp_path)
    teacher = Teacher(small_net(), TeacherConfig(arch="small"), SPEC, "sha256:none").model
    images = to_network_input(pixels(64), SPEC, 0.0)
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for name, network in (("student", student), ("teacher", teacher)):
        network[1].register_forward_hook(
            lambda _m, _a, out, name=name: seen[name].append(out.clone().transpose(0, 1).flatten(1))
        )
        network(images)
    corrected, wanted = seen["student"][0], seen["teacher"][0]
    torch.testing.assert_close(corrected.mean(1), wanted.mean(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(corrected.std(1), wanted.std(1), rtol=1e-2, atol=1e-2)
    assert not torch.equal(student[1].running_var, teacher[1].running_var)


def test_a_block_in_float_is_passed_over(tmp_path: Path) -> None:
    config = settings({"bits": "w3a3", "layer_bits": "3=w32a32", "range": "mse"}, reconstruct_steps=5)
    _, result = reconstructed(config, tmp_path)
    assert result[1]["before"] == result[1]["after"] != 0


def test_fixed_steps_stay_fixed(tmp_path: Path) -> None:
    config = settings(weight_step_lr=0.0, activation_step_lr=0.0, drop_probability=0.0, reconstruct="layer")
    nearest, _ = prepared(config)
    student, result = reconstructed(config, tmp_path)
    assert len(result) == 6
    before = nearest.state_dict()
    scales = [name for name in before if name.endswith("scale")]
    assert scales
    assert all(torch.equal(before[name], student.state_dict()[name]) for name in scales)


def interrupted(config: FinetuneConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """A run that ends in the middle of a block."""
    whole = recipe.reconstruct_block

    def cut(module: nn.Module, data: BlockData, settings: object, seed: int, number: int, recorder: None):
        for step in whole(module, data, config.recipe, seed, number, recorder):
            if (number, step) == (block, 5):
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "reconstruct_block", cut)
        with pytest.raises(KeyboardInterrupt):
            reconstructed(config, folder)


def test_resumed_equals_uninterrupted_and_another_seed_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(reconstruct_steps=15)
    whole, result = reconstructed(config, tmp_path / "whole")
    interrupted(config, tmp_path / "cut", monkeypatch, block=2)
    resumed, again = reconstructed(config, tmp_path / "cut", resume=True)
    assert again == result
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"seed": 1})})
    other, _ = reconstructed(config, tmp_path / "other")
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items())


def compare_with_file(config: FinetuneConfig, folder: Path) -> None:
    with process_group() as ranks:
        assert ranks.world == 2
        student, _ = reconstructed(config, folder / "two")
    for name, expected in torch.load(folder / "alone.pt").items():
        assert torch.equal(student.state_dict()[name], expected), name


def test_two_processes_have_the_same_student_as_one(tmp_path: Path) -> None:
    config = settings(reconstruct_steps=4)
    student, _ = reconstructed(config, tmp_path / "one")
    torch.save(copy.deepcopy(student.state_dict()), tmp_path / "alone.pt")
    in_processes(2, compare_with_file, config, tmp_path)


def test_command_line(digits_run: Path, finetune: Cli, tmp_path: Path, digits_teacher: DigitsTeacher) -> None:
    base = ["--shards", digits_run, "--bits", "w2a4", "--batch-size", 32, "--val", digits_teacher.val]
    base += ["--reconstruct", "block", "--reconstruct-steps", 40, "--reconstruct-batch-size", 16]
    dry = finetune(*base, "--out", tmp_path / "dry", "--dry-run")
    assert "each block in 40 steps" in dry.out
    results = []
    for name, flags in {"alone": ["--epochs", 0], "again": ["--epochs", 0], "distilled": ["--epochs", 2]}.items():
        done = finetune(*base, *flags, "--out", tmp_path / name)
        assert done.code == 0, done.err
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    alone, again, distilled = results
    assert [block["block"] for block in alone["reconstruction"]] == ["0", "3", "6", "9", "12", "17"]
    assert alone["student"]["top1"] > alone["calibrated"]["top1"] + 5
    assert alone["student"]["sha256"] == again["student"]["sha256"]
    assert distilled["reconstruction"] == alone["reconstruction"]
    assert distilled["student"]["sha256"] != alone["student"]["sha256"]
    student, _, _ = load_student(tmp_path / "alone", CPU)
    saved = load_file(tmp_path / "alone" / "student.safetensors")
    for name, layer in rounded_layers(student).items():
        assert layer.weight_quantizer is not None
        assert torch.equal(layer.weight_quantizer.to_int(layer.weight).dequantize(), saved[f"{name}.weight"])
    # Both stages have ended: resuming finds nothing left to do.
    resumed = finetune(*base, "--epochs", 2, "--out", tmp_path / "distilled", "--resume")
    assert resumed.code == 0, resumed.err
    same = json.loads((tmp_path / "distilled" / "result.json").read_text())
    assert same["student"]["sha256"] == distilled["student"]["sha256"]
    refused = finetune(*base, "--epochs", 2, "--out", tmp_path / "distilled", "--resume", "--drop-probability", 0.1)
    assert refused.code == 2
    assert "drop_probability" in refused.err
