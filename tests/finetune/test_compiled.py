"""A compiled student learns what the plain one learns."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import preloaded
from tests.conftest import DISTILLATION, Cli

FLAGS = ["--bits", "w4a4", "--epochs", "2", "--steps-per-epoch", "0", "--batch-size", "50", "--json"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# Code without vectors and optimisation: the C++ compiler takes a fraction of the time for it.
PLAIN_CODE = {"TORCHINDUCTOR_VEC_ISA_OK": "0", "TORCHINDUCTOR_DEBUG_COMPILE": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
# Of two layers, since each is compiled for two sizes of batches.
NET = """
from torch import nn

def net():
    layers = [nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 10))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, gen: Cli) -> Path:
    """A set of 120 images for a network of two layers with random weights."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "net.py").write_text(NET)
    names: dict[str, Callable[[], nn.Module]] = {}
    exec(NET, names)
    torch.manual_seed(0)
    network = names["net"]().train()
    network(torch.randn(64, 1, 8, 8))
    torch.save(network.state_dict(), folder / "net.pt")
    teacher = ["--arch", f"{folder / 'net.py'}:net", "--weights", folder / "net.pt", "--input-size", 8, "--in-channels", 1]
    teacher += ["--num-classes", 10, "--mean", 0.5, "--std", 0.5]
    bank = ["--method", "zeroq", "--preset", "quick", "--bank-steps", 1, "--batch-size", 60, "--keep-misclassified"]
    done = gen("train", *teacher, *bank, "--per-class", 12, "--heldout-per-class", 0, "--out", folder / "out")
    assert done.code == 0, done.err
    return folder / "out"


def run(shards: Path, folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a fine-tuning in a process of its own, since torch reads its environment and looks for a compiler once."""
    command = [sys.executable, "-m", "clusterq_finetune", "--shards", shards, *FLAGS, *DISTILLATION, "--no-report", *flags]
    given = {**preloaded.plain_environment(), "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), **environment}
    return subprocess.run([str(part) for part in command], env=given, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_student_trains_alike(shards: Path, finetune: Cli, tmp_path: Path) -> None:
    plain = finetune("--shards", shards, *FLAGS, "--no-compile", "--out", tmp_path / "plain")
    assert plain.code == 0, plain.err
    compiled = run(shards, tmp_path, "--compile", "--out", str(tmp_path / "compiled"), **PLAIN_CODE)
    assert compiled.returncode == 0, compiled.stderr
    results, losses = [], []
    for name, out in (("plain", plain.out), ("compiled", compiled.stdout)):
        results.append(json.loads(out.splitlines()[-1]))
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["loss/kl"] for record in records if "loss/kl" in record])
    # Three batches a pass, the last one smaller. Sums in another order: near, not the same.
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert results[0]["student"]["sha256"] != results[1]["student"]["sha256"], "it was compiled"


def test_without_a_compiler_it_says_so(shards: Path, tmp_path: Path) -> None:
    done = run(shards, tmp_path, "--compile", "--out", str(tmp_path / "out"), CXX="/nowhere/c++")
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "--compile: torch" in last
    assert "No working C++ compiler found" in last
    assert "leave the flag out" in last
    assert not (tmp_path / "out").exists(), "it is said before anything is made"


def test_features_are_out_of_reach(shards: Path, finetune: Cli, tmp_path: Path) -> None:
    done = finetune("--shards", shards, *FLAGS, "--compile", "--feature-weight", 1, "--out", tmp_path / "out")
    assert done.code == 2
    assert "feature_weight looks into the student" in done.err
