"""The whole job through the two command lines, small, on real digits."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from clusterq_common.quant.convert import quantizers
from clusterq_common.run import kept
from clusterq_common.run.checkpoint import save_checkpoint
from clusterq_finetune.student import load_student
from tests.conftest import BRIEF, FACTORY, TINY, Cli, DigitsTeacher


@pytest.fixture(scope="module")
def tuned(
    digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """One fine-tuning from a copy of the shared run; its JSON result."""
    run = tmp_path_factory.mktemp("tuned") / "out"
    shutil.copytree(digits_run, run)
    done = finetune(
        "--shards",
        run,
        "--arch",
        FACTORY,
        "--bits",
        "w3a3",
        "--epochs",
        4,
        "--steps-per-epoch",
        0,
        "--batch-size",
        32,
        "--val",
        digits_teacher.val,
        "--json",
    )
    assert done.code == 0, done.err
    result: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return result


def test_a_run_folder_holds_what_it_should(digits_run: Path) -> None:
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "checkpoints/last.pt", "shards/manifest.json"):
        assert (digits_run / name).is_file(), name
    manifest = json.loads((digits_run / "shards" / "manifest.json").read_text())
    assert (manifest["format"], manifest["teacher"]["spec"]["size"]) == ("clusterq-shards/1", 8), "as older versions read it"
    assert manifest["splits"]["train"]["per_class"] == [12] * 10
    assert manifest["splits"]["heldout"]["per_class"] == [1] * 10
    assert manifest["teacher"]["arch"] == "digits_net.py:digits_net", "no path of this machine"
    assert str(digits_run) not in json.dumps(manifest)
    config = yaml.safe_load((digits_run / "config.yaml").read_text())
    assert config["train"]["epochs"] == 6
    assert Path(config["teacher"]["weights"]).is_absolute()


def test_result(tuned: dict[str, Any], digits_teacher: DigitsTeacher) -> None:
    assert tuned["teacher"]["top1"] == pytest.approx(digits_teacher.accuracy, abs=0.01)
    assert tuned["student"]["top1"] > 60
    assert tuned["student"]["top1"] >= tuned["calibrated"]["top1"] - 2
    assert tuned["student"]["top5"] > 90
    folder = Path(tuned["out"])
    assert folder.name == "finetune-w3a3"
    assert folder.parent.name == "out", "beside the shards' run"
    saved = json.loads((folder / "result.json").read_text())
    assert saved["student"]["sha256"] == tuned["student"]["sha256"]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in metrics if "loss/kl" in record]
    assert len(steps) == 4 * 4
    assert steps[-1]["loss/kl"] < steps[0]["loss/kl"]
    assert sum("heldout/agreement" in record for record in metrics) == 4


def test_saved_student_evaluates_the_same(tuned: dict[str, Any], digits_teacher: DigitsTeacher, finetune: Cli) -> None:
    done = finetune("evaluate", "--student", tuned["out"], "--val", digits_teacher.val, "--json")
    assert done.code == 0, done.err
    again = json.loads(done.out.splitlines()[-1])
    assert again["student"]["top1"] == tuned["student"]["top1"]
    assert again["preprocessing"] == tuned["preprocessing"]
    assert again["preprocessing"].startswith("whole image at 8x8")
    assert "top-1" in done.out
    student, _, _ = load_student(Path(tuned["out"]), torch.device("cpu"))
    assert {quantizer.bits for quantizer in quantizers(student).values()} == {3, 8}


def test_evaluation_in_integers(tuned: dict[str, Any], digits_teacher: DigitsTeacher, finetune: Cli) -> None:
    done = finetune("evaluate", "--student", tuned["out"], "--val", digits_teacher.val, "--integer", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert result["student"]["top1"] == tuned["student"]["top1"]
    assert result["integer"]["images"] == result["student"]["images"]
    assert result["integer"]["top1"] == pytest.approx(result["student"]["top1"], abs=1)
    assert result["integer"]["agreement_with_student"] >= 99
    assert 0 < result["integer"]["largest_logit_difference"] < 5
    assert f"agrees with the student on {result['integer']['agreement_with_student']:.2f} %" in done.out


def test_the_in_loop_student_is_evaluated_too(digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli) -> None:
    done = finetune("evaluate", "--student", digits_run, "--val", digits_teacher.val, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert result["student"]["bits"] == "w4a4"
    assert result["student"]["top1"] > 50


def test_a_float_student_has_no_integers(
    digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    assert finetune("--shards", digits_run, "--bits", "w32a32", "--epochs", 0, "--out", tmp_path / "s").code == 0
    done = finetune("evaluate", "--student", tmp_path / "s", "--val", digits_teacher.val, "--integer")
    assert done.code == 2
    assert "is at w32a32, expected quantized layers" in done.err


def test_resizing_and_cropping_can_be_set_and_are_reported(
    digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    flags = ["--shards", digits_run, "--bits", "w8a8", "--epochs", 0, "--out", tmp_path / "s", "--val", digits_teacher.val]
    done = finetune(*flags, "--crop-pct", 0.5, "--json")
    assert done.code == 0, done.err
    tuned = json.loads(done.out.splitlines()[-1])
    assert tuned["preprocessing"].startswith("shorter side to 16 (bilinear, antialiased), centre crop 8; ")
    evaluate = ["evaluate", "--student", tmp_path / "s", "--val", digits_teacher.val, "--json"]
    again = json.loads(finetune(*evaluate).out.splitlines()[-1])
    assert again["preprocessing"] == tuned["preprocessing"], "as when it was tuned"
    assert again["student"]["top1"] == tuned["student"]["top1"]
    other = json.loads(finetune(*evaluate, "--crop-pct", 1, "--interpolation", "bicubic").out.splitlines()[-1])
    assert other["preprocessing"].startswith("shorter side to 8 (bicubic, antialiased), centre crop 8; ")
    assert other["student"]["top1"] > tuned["student"]["top1"] + 10, "not the middle quarter alone"
    refused = finetune(*evaluate, "--crop-pct", 1.5)
    assert refused.code == 2
    assert "--crop-pct: must be above 0 and at most 1, or off (found '1.5')" in refused.err


def test_shards_apart_from_their_run_name_no_code(
    tuned: dict[str, Any], digits_run: Path, finetune: Cli, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(digits_run / "shards", bare)
    flags = ["--shards", bare, "--bits", "w3a3", "--epochs", 4, "--steps-per-epoch", 0, "--batch-size", 32, "--json"]
    refused = finetune(*flags, "--out", tmp_path / "refused")
    assert refused.code == 2, "a factory's name in a manifest loads no code"
    assert "--arch is missing" in refused.err
    config = yaml.safe_load((digits_run / "config.yaml").read_text())["teacher"]
    done = finetune(*flags, "--arch", config["arch"], "--weights", config["weights"], "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["student"]["sha256"] == tuned["student"]["sha256"]


def test_resumed_fine_tuning_is_the_uninterrupted_one(
    tuned: dict[str, Any],
    digits_run: Path,
    finetune: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save_then_stop(path: Path, state: dict[str, object]) -> None:
        save_checkpoint(path, state)
        if state["step"] == 8:
            raise KeyboardInterrupt

    flags = [
        "--shards",
        digits_run,
        "--bits",
        "w3a3",
        "--epochs",
        4,
        "--steps-per-epoch",
        0,
        "--batch-size",
        32,
        "--checkpoint-seconds",
        0,
    ]
    flags += ["--out", tmp_path / "cut", "--json"]
    monkeypatch.setattr(kept, "save_checkpoint", save_then_stop)
    stopped = finetune(*flags)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    monkeypatch.setattr(kept, "save_checkpoint", save_checkpoint)
    contradicting = finetune(*flags, "--resume", "--lr", 0.5)
    assert contradicting.code == 2
    assert "lr is 0.5" in contradicting.err
    done = finetune(*flags, "--resume")
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["student"]["sha256"] == tuned["student"]["sha256"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--quantizer", "asymmetric", "--range", "minmax"],
        ["--range", "percentile", "--weight-granularity", "tensor"],
        ["--range", "mse", "--activation-sites", "relu"],
        ["--first-last-bits", "8", "--augment", "crop-flip"],
        ["--bits", "w32a32"],
        ["--bits", "w4a32", "--ce-weight", "0"],
    ],
)
def test_every_convention_runs_and_reloads(
    flags: list[str], digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    bits = [] if "--bits" in flags else ["--bits", "w4a4"]
    done = finetune(
        "--shards",
        digits_run,
        *bits,
        *flags,
        "--epochs",
        1,
        "--steps-per-epoch",
        0,
        "--out",
        tmp_path / "s",
        "--val",
        digits_teacher.val,
        "--json",
    )
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert result["student"]["top1"] > 30
    again = finetune("evaluate", "--student", tmp_path / "s", "--val", digits_teacher.val, "--json")
    assert json.loads(again.out.splitlines()[-1])["student"]["top1"] == result["student"]["top1"]


def test_saved_config_reruns_the_generator(digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert gen("train", *digits_teacher.flags, *BRIEF, "--out", run).code == 0
    done = gen("train", "--config", run / "config.yaml", "--out", tmp_path / "again")
    assert done.code == 0, done.err
    first, second = (load_file(folder / "generator.safetensors") for folder in (run, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    shard = "shards/synth-train-000000.tar"
    assert (run / shard).read_bytes() == (tmp_path / "again" / shard).read_bytes()


def test_dry_runs_write_nothing(
    digits_run: Path, digits_teacher: DigitsTeacher, gen: Cli, finetune: Cli, tmp_path: Path
) -> None:
    done = gen("train", *digits_teacher.flags, *TINY, "--out", tmp_path / "out", "--dry-run")
    assert done.code == 0, done.err
    for word in ("image (1, 8, 8)", "6 layers", "6 epochs x 60", "120 for training", "shards (shards/)", "disk:"):
        assert done.out.count(word) == 1, word
    told = r".+ to .+; loading torch and the classifier\ntiming a few steps for the estimate\n"
    assert re.fullmatch(told, done.err), "the plan is whole on stdout, and said once"
    done = finetune(
        "--shards", digits_run, "--bits", "w4a4", "--out", tmp_path / "ft", "--dry-run", "--val", digits_teacher.val
    )
    assert done.code == 0, done.err
    assert "120 training images" in done.out
    assert not list(tmp_path.iterdir())


def test_doctor(gen: Cli) -> None:
    done = gen("doctor")
    assert done.code == 0
    for word in ("torch", "threads", "weights cache", "losses finite"):
        assert word in done.out, word


def test_help_is_quick_and_states_defaults() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}
    code = "import sys; sys.argv = ['x', '--help']\ntry:\n    from clusterq_{0} import main; main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    for program in ("gen.cli", "finetune.cli.main"):
        subprocess.run([sys.executable, "-c", code.format(program)], env=environment, check=True, capture_output=True)
    shown = subprocess.run(
        [sys.executable, "-m", "clusterq_gen", "train", "--help"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert "(default: 200; paper-imagenet: 16; quick:" in " ".join(shown.split())


def test_predictions_are_kept_image_by_image(tuned: dict[str, Any]) -> None:
    with np.load(Path(tuned["out"]) / "predictions.npz", allow_pickle=False) as arrays:
        models = ("teacher", "calibrated", "student")
        best = {f"{model}_top5_{what}" for model in models for what in ("classes", "probabilities")}
        assert set(arrays) == {"name", "label", *models, *best}
        assert len(set(arrays["name"].tolist())) == tuned["student"]["images"]
        for model in models:
            assert np.array_equal(arrays[f"{model}_top5_classes"][:, 0], arrays[model])
            assert (np.diff(arrays[f"{model}_top5_probabilities"]) <= 0).all()
            assert 100 * (arrays[model] == arrays["label"]).mean() == pytest.approx(tuned[model]["top1"])
        agreement = 100 * (arrays["student"] == arrays["teacher"]).mean()
        assert agreement == pytest.approx(tuned["student"]["agreement"])
