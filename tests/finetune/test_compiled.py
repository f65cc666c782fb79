"""A compiled student learns what the plain one learns."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli

FLAGS = ["--bits", "w4a4", "--epochs", "2", "--steps-per-epoch", "0", "--batch-size", "50", "--json"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_student_trains_alike(
    digits_run: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    results, losses = [], []
    for flag in ("--no-compile", "--compile"):
        done = finetune("--shards", digits_run, *FLAGS, flag, "--out", tmp_path / flag)
        assert done.code == 0, done.err
        results.append(json.loads(done.out.splitlines()[-1]))
        records = [json.loads(line) for line in (tmp_path / flag / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["loss/kl"] for record in records if "loss/kl" in record])
    # Three batches a pass, the last one smaller. Sums in another order: near, not the same.
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert results[0]["student"]["sha256"] != results[1]["student"]["sha256"], "it was compiled"


def test_without_a_compiler_it_says_so(digits_run: Path, tmp_path: Path) -> None:
    # A process of its own: torch looks for a compiler once.
    command = [
        sys.executable,
        "-m",
        "clusterq_finetune",
        "--shards",
        digits_run,
        *FLAGS,
        "--compile",
        "--out",
        tmp_path / "out",
    ]
    environment = {**os.environ, "CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "--compile: torch" in last
    assert "No working C++ compiler found" in last
    assert "leave the flag out" in last
    assert not (tmp_path / "out").exists(), "it is said before anything is made"


def test_features_are_out_of_reach(digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    done = finetune("--shards", digits_run, *FLAGS, "--compile", "--feature-weight", 1, "--out", tmp_path / "out")
    assert done.code == 2
    assert "feature_weight looks into the student" in done.err
