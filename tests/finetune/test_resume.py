"""A fine-tuning goes on with the set that it was started with, told by its digest, wherever the set lies by then."""

import shutil
from pathlib import Path

import yaml

from tests.conftest import FACTORY, Cli

STEPS = ("--bits", "w4a4", "--epochs", 1, "--steps-per-epoch", 2, "--batch-size", 32, "--no-report")


def test_other_shards_are_refused(finetune: Cli, digits_run: Path, tmp_path: Path) -> None:
    done = finetune("shards", "subset", digits_run, "--per-class", 5, "--out", tmp_path / "other")
    assert done.code == 0, done.err
    out = tmp_path / "out"
    weights = yaml.safe_load((digits_run / "config.yaml").read_text())["teacher"]["weights"]
    teacher = ("--arch", FACTORY, "--weights", weights)
    shutil.copytree(digits_run / "shards", tmp_path / "here")
    assert finetune("--shards", tmp_path / "here", *teacher, *STEPS, "--out", out).code == 0
    student = (out / "student.safetensors").read_bytes()

    done = finetune("--shards", tmp_path / "other", *teacher, *STEPS, "--out", out, "--resume")
    assert done.code == 2
    assert "expected the same set" in done.err
    assert (out / "student.safetensors").read_bytes() == student

    (tmp_path / "here").rename(tmp_path / "there")
    done = finetune("--shards", tmp_path / "there", *teacher, *STEPS, "--out", out, "--resume")
    assert done.code == 0, done.err


def test_a_saved_config_starts_on_other_shards(finetune: Cli, digits_run: Path, tmp_path: Path) -> None:
    assert finetune("--shards", digits_run, *STEPS, "--out", tmp_path / "a").code == 0
    assert finetune("shards", "subset", digits_run, "--per-class", 5, "--out", tmp_path / "other").code == 0
    done = finetune("--config", tmp_path / "a" / "config.yaml", "--shards", tmp_path / "other", "--out", tmp_path / "b")
    assert done.code == 0, done.err
    digests = [yaml.safe_load((tmp_path / name / "config.yaml").read_text())["shards_digest"] for name in "ab"]
    assert digests[0] != digests[1]
