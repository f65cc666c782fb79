"""Folders that no report is drawn of, folders that mean harm, and a drawing that fails."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from clusterq_report import command
from tests.conftest import Cli
from tests.e2e.page import Page


def test_what_is_no_run_is_refused(gen: Cli, finetune: Cli, tuned: Path, tmp_path: Path) -> None:
    for cli in (gen, finetune):
        for folder, words in ((tmp_path, "holds neither config.yaml nor table.json"), (tmp_path / "none", "is no folder")):
            done = cli("report", folder)
            assert done.code == 2
            assert words in done.err
            assert len(done.err.splitlines()) == 1
    done = finetune("report", tuned, "--out", tmp_path / "none" / "page.html")
    assert (done.code, "--out" in done.err) == (2, True)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert "neither a section generator" in gen("report", tmp_path).err
    for name, content in (
        ("result.json", b"[1"),
        ("metrics.jsonl", b"x\n"),
        ("predictions.npz", b"PK"),
        ("environment.json", b"\xff"),
    ):
        run = tmp_path / name
        shutil.copytree(tuned, run)
        (run / name).write_bytes(content)
        done = finetune("report", run)
        assert done.code == 2, name
        assert name in done.err
        assert len(done.err.splitlines()) == 1


def test_a_hostile_folder_harms_nobody(tuned: Path, finetune: Cli, tmp_path: Path) -> None:
    run, evil = tmp_path / "run", '"><script>alert(1)</script><img src=http://localhost/x onerror=alert(1)>\u202e\x07'
    shutil.copytree(tuned, run)

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"{key}{evil}" if key == "weight_ema" else key: poisoned(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [poisoned(entry) for entry in value]
        return evil if isinstance(value, str) else value

    result = json.loads((run / "result.json").read_text())
    shards, student = result["shards"]["digest"], result["student"]["sha256"]
    result = poisoned(result)
    result["shards"]["digest"], result["student"]["sha256"] = shards, student
    config = yaml.safe_load((run / "config.yaml").read_text())
    config = poisoned(config) | {"shards": config["shards"], evil: {evil: [evil]}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "result.json").write_text(json.dumps(result))
    analysis = poisoned(json.loads((run / "analysis.json").read_text())) | {"shards": shards, "student": student}
    (run / "analysis.json").write_text(json.dumps(analysis))
    (run / "environment.json").write_text(json.dumps({"command": [evil, evil], "versions": {evil: evil}, "commit": evil}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, f"loss/{evil}": 1.0, "loss/ce": "x", "loss/kl": 10**400}) + "\n[]\n7\n")
    with np.load(run / "predictions.npz") as predictions:
        arrays = dict(predictions)
    arrays["name"] = np.array([f"{evil.replace('/', '')}/{name}" for name in arrays["name"]])
    np.savez(run / "predictions.npz", **{**arrays, "student": arrays["student"] - 5})
    done = finetune("report", run)
    assert (done.code, "'student.npy' holds numbers that are no classes" in " ".join(done.err.split())) == (2, True), done.err
    np.savez(run / "predictions.npz", **arrays)
    assert finetune("report", run).code == 0
    page = Page(run / "report.html")
    assert "alert(1)" in page.text, "it is shown as the text that it is"
    assert "As it was started" not in page.text, "nobody is offered an unknown program to copy"
    (run / "environment.json").write_text(
        json.dumps({"command": ["/somewhere/bin/clusterq-finetune", "--resume", "--out", "a; b"]})
    )
    assert finetune("report", run).code == 0
    assert "As it was started: clusterq-finetune --out 'a; b'" in Page(run / "report.html").text
    # Sections that are something else than what they should be.
    for part in ("student", "teacher", "reconstruction", "shards", "settings"):
        (run / "result.json").write_text(json.dumps({**result, part: [5, None, "x"]}))
        assert finetune("report", run).code == 0, part
        Page(run / "report.html")
    # A few lines of YAML that unfold to more than any memory holds, and JSON nested as deep as it can be read.
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 20)}]\n" for n in range(1, 30))
    deep = json.dumps({**result, "preprocessing": 0}).replace('"preprocessing": 0', '"preprocessing": ' + "[" * 400 + "]" * 400)
    (run / "result.json").write_text(deep)
    (run / "environment.json").write_text(json.dumps({"command": [[1]], "commit": [1], "device": {"a": {}}}))
    for text in (
        bomb + "recipe: {recipe: *a29}\nteacher: {arch: *a29}\nquant: {bits: *a29}\n",
        "teacher: 5\nquant: [1]\nrecipe: x\nruntime: {seed: []}\n",
        "generator: 5\nteacher: {arch: [1]}\nmethod: 7\ntrain: []\n",
    ):
        (run / "config.yaml").write_text(text)
        assert finetune("report", run).code == 0, text
        Page(run / "report.html")


def test_a_report_that_fails_loses_nothing(
    digits_run: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> Path:
        raise RuntimeError(f"no picture of\n{folder.name}")

    monkeypatch.setattr(command, "draw_report", broken)
    done = finetune("--shards", digits_run, "--bits", "w4a4", "--epochs", 0, "--report", "--out", tmp_path / "run")
    assert done.code == 0
    assert (
        "Warning: the run is complete, but its report is not (RuntimeError: no picture of run); try `clusterq-finetune report"
        in done.err
    )
    assert (tmp_path / "run" / "result.json").is_file()
