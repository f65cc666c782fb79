"""Repeating a fine-tuning from its result, and comparing several."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import FACTORY, Cli, DigitsTeacher

RUN = ["--bits", "w3a3", "--epochs", 1, "--steps-per-epoch", 0, "--batch-size", 32]


@pytest.fixture(scope="module")
def runs(digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one recipe, and another recipe."""
    base = tmp_path_factory.mktemp("runs")
    for name, more in (("a", ["--seed", 0]), ("b", ["--seed", 1]), ("c", ["--ce-weight", 0])):
        done = finetune("--shards", digits_run, *RUN, *more, "--val", digits_teacher.val, "--out", base / name)
        assert done.code == 0, done.err
    return base


def test_reproduced_byte_for_byte(runs: Path, finetune: Cli, tmp_path: Path) -> None:
    done = finetune("reproduce", runs / "a" / "result.json", "--out", tmp_path / "again", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out.splitlines()[-1])
    assert report["verdict"] == "identical"
    assert (tmp_path / "again" / "student.safetensors").read_bytes() == (runs / "a" / "student.safetensors").read_bytes()


def altered(runs: Path, folder: Path, scale: float) -> Path:
    """A run whose student is a little, or entirely, another one."""
    shutil.copytree(runs / "a", folder)
    state = load_file(folder / "student.safetensors")
    random = torch.Generator().manual_seed(0)
    name = next(name for name, value in state.items() if value.dim() == 4)
    state[name] += scale * torch.randn(state[name].shape, generator=random)
    save_file(state, folder / "student.safetensors")
    result = json.loads((folder / "result.json").read_text())
    result["student"]["sha256"] = "0" * 64
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_equivalent_and_different(runs: Path, finetune: Cli, tmp_path: Path) -> None:
    close = finetune("reproduce", altered(runs, tmp_path / "close", 1e-6), "--arch", FACTORY, "--out", tmp_path / "1", "--json")
    assert close.code == 0, close.err
    report = json.loads(close.out.splitlines()[-1])
    assert report["verdict"] == "equivalent"
    assert 0 < report["weights_apart"] < 1e-3
    assert report["agreement"] >= 0.95
    far = finetune("reproduce", altered(runs, tmp_path / "far", 10.0), "--arch", FACTORY, "--out", tmp_path / "2", "--json")
    assert far.code == 1
    assert json.loads(far.out.splitlines()[-1])["verdict"] == "different"


def test_reproduce_refuses(runs: Path, gen: Cli, finetune: Cli, digits_run: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        ([tmp_path / "absent.json"], "cannot be read"),
        ([runs / "a" / "config.yaml"], "is no JSON"),
        ([digits_run / "shards" / "manifest.json"], "expected the result.json of a finished fine-tuning"),
    ):
        done = finetune("reproduce", *arguments, "--out", tmp_path / "out")
        assert done.code == 2
        assert sentence in done.err
    assert gen("emit", "--run", digits_run, "--per-class", 2, "--seed", 8, "--out", tmp_path / "other").code == 0
    other = finetune("reproduce", runs / "a", "--shards", tmp_path / "other", "--out", tmp_path / "out")
    assert other.code == 2
    assert "name the set it was made from" in other.err
    assert not (tmp_path / "out").exists()


def test_compare(runs: Path, finetune: Cli, tmp_path: Path) -> None:
    folders = [runs / name for name in "abc"]
    done = finetune("compare", *folders, "--out", tmp_path / "t.json")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "t.json").read_text())
    assert [row["runs"] for row in rows] == [2, 1]
    both = [json.loads((runs / name / "result.json").read_text())["student"]["top1"] for name in "ab"]
    assert 0 < rows[0]["student balanced"] <= 100
    assert rows[0]["student top-1"] == pytest.approx(sum(both) / 2, abs=0.01)
    assert rows[0]["spread"] == pytest.approx(abs(both[0] - both[1]) / 2**0.5, abs=0.01)
    assert rows[0]["seeds"] == "0, 1"
    assert rows[1]["spread"] is None
    assert "CE 0" in rows[1]["recipe"]
    assert done.out.startswith("| teacher | method |")
    assert finetune("compare", *folders, "--out", tmp_path / "t.csv").code == 0
    assert len(list(csv.DictReader((tmp_path / "t.csv").open()))) == 2
    assert finetune("compare", *folders, "--out", tmp_path / "t.html").code == 0
    assert "Comparison of methods" in (tmp_path / "t.html").read_text()
    refused = finetune("compare", *folders, "--out", tmp_path / "t.xls")
    assert refused.code == 2
    assert "expected .md, .csv, .json, .html" in refused.err
