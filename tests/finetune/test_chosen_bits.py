"""Bits chosen by layer, through the command line: what is written, resumed, evaluated and refused."""

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import Cli, DigitsTeacher

SHORT = ("--bits", "w4a8", "--epochs", 0, "--calibration-images", 40, "--sensitivity-images", 20, "--no-report")


def test_an_average_is_kept_and_written_down(
    finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ("--shards", digits_run, *SHORT, "--average-bits", 3.5, "--average-input-bits", 5)
    done = finetune(*asked, "--out", out)
    assert done.code == 0, done.err
    result = json.loads((out / "result.json").read_text())["bits"]
    counted = [(layer["weights"], layer["weight_bits"]) for layer in result["layers"]]
    average = sum(size * bits for size, bits in counted) / sum(size for size, _ in counted)
    assert 3 <= average <= 3.5
    assert result["average_weight_bits"] == pytest.approx(average, abs=1e-4)
    assert result["aim"]["average_bits"] == 3.5
    entries = yaml.safe_load((out / "config.yaml").read_text())["quant"]["layer_bits"]
    assert len(entries) == len(counted)
    assert {len(layer["weight_kl"]) for layer in result["layers"]} == {7}

    # The chosen bits are the student's, wherever it is read.
    done = finetune("evaluate", "--student", out, "--val", digits_teacher.val, "--json")
    assert done.code == 0, done.err

    # A run that ended right after the choice goes on with it.
    before = (out / "student.safetensors").read_bytes()
    for name in ("student.safetensors", "result.json"):
        (out / name).unlink()
    chosen = json.loads((out / "bits.json").read_text())
    config = yaml.safe_load((out / "config.yaml").read_text())
    config["quant"]["layer_bits"] = []
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    done = finetune(*asked, "--out", out, "--resume")
    assert done.code == 0, done.err
    assert (out / "student.safetensors").read_bytes() == before
    assert json.loads((out / "bits.json").read_text()) == chosen
    assert "measuring" not in done.err

    done = finetune(*asked, "--layer-bits", "6=w8a8", "--out", out, "--resume")
    assert done.code == 2
    assert "layer_bits" in done.err

    # The saved configuration alone gives the same student.
    done = finetune("--config", out / "config.yaml", "--out", tmp_path / "again")
    assert done.code == 0, done.err
    assert (tmp_path / "again" / "student.safetensors").read_bytes() == before


def test_the_smallest_student_that_keeps_a_drop(finetune: Cli, digits_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = finetune("--shards", digits_run, *SHORT, "--max-drop", 12, "--out", out)
    assert done.code == 0, done.err
    result = json.loads((out / "result.json").read_text())["bits"]
    tried = {attempt["average_bits"]: attempt["estimated_drop"] for attempt in result["tried"]}
    kept = [average for average, drop in tried.items() if drop <= 12]
    assert min(kept) - 0.5 <= result["average_weight_bits"] <= min(kept)
    assert min(kept) == 2 or tried[min(kept) - 0.25] > 12, "the next smaller one was tried, and lost more"
    done = finetune("--shards", digits_run, *SHORT, "--bits", "w4a2", "--max-drop", 0.001, "--out", tmp_path / "never")
    assert done.code == 2
    assert "--bits w4a8" in done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--average-bits", 9), "--average-bits"),
        (("--average-bits", 4, "--target-size", "5kB"), "exclude each other"),
        (("--target-size", "1kB"), "--target-size: 1kB is too small"),
        (("--target-size", "soon"), "expected a number and a unit"),
        (("--bits", "w32a8", "--average-bits", 4), "leaves weights in float"),
        (("--bits", "w4a32", "--average-input-bits", 4), "needs quantized inputs"),
        (("--average-bits", 4, "--layer-bits", "*=w32a8"), "leaves the weights of all layers in float"),
    ],
)
def test_refusals(finetune: Cli, digits_run: Path, tmp_path: Path, flags: tuple[object, ...], words: str) -> None:
    done = finetune("--shards", digits_run, *SHORT, *flags, "--out", tmp_path / "out")
    assert done.code == 2
    assert words in done.err


def test_bits_of_inputs_alone(finetune: Cli, digits_run: Path, tmp_path: Path) -> None:
    """Weights that stay in float have no average."""
    out = tmp_path / "out"
    done = finetune("--shards", digits_run, *SHORT, "--bits", "w32a4", "--average-input-bits", 5, "--out", out)
    assert done.code == 0, done.err
    assert "bits chosen: weights in float, " in done.err
    result = json.loads((out / "result.json").read_text())["bits"]
    assert result["average_weight_bits"] is None
    assert {layer["weight_bits"] for layer in result["layers"]} == {32}


def test_a_plan_says_what_is_chosen(finetune: Cli, digits_run: Path, tmp_path: Path) -> None:
    done = finetune("--shards", digits_run, *SHORT, "--target-size", "20kB", "--dry-run")
    assert done.code == 0, done.err
    assert "bits: chosen for each layer; target_size 20kB" in done.out
    assert "finetune-w4a8-size20kB" in done.out
