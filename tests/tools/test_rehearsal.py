"""A rehearsal of tools/gpu/prove.py runs every stage on a CPU."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import preloaded
from tests.tools.conftest import GPU


@pytest.mark.long
@pytest.mark.real
def test_a_rehearsal_runs_every_stage(data: Path, real_data: Path, tmp_path: Path) -> None:
    """Made-up images, real classifiers (ImageNet's for small images), hundredths of the budgets."""
    folder = tmp_path / "data"
    shutil.copytree(data / "data", folder / "data")
    shutil.copytree(real_data / "models", folder / "models")
    factory = folder / "models" / "mobilenet_v1.py"
    own, pooled = "    body = mobilenet_wd4()\n", "    body.features.final_pool = nn.AdaptiveAvgPool2d(1)\n"
    assert own in factory.read_text()
    factory.write_text(factory.read_text().replace(own, own + pooled))
    environment = preloaded.environment() | {"CLUSTERQ_DATA": str(folder), "CLUSTERQ_UNPACKED": str(tmp_path / "unpacked")}
    packed = [sys.executable, GPU / "pack.py", "--out", tmp_path / "pack", "--no-wheels", "--no-reference"]
    done = subprocess.run(packed, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, GPU / "prove.py", "--pack", tmp_path / "pack", "--out", tmp_path / "proof", "--rehearse"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    whole = json.loads((tmp_path / "proof" / "proof.json").read_text())
    stages = {name: (stage["status"], stage["failures"]) for name, stage in whole["stages"].items()}
    assert stages == dict.fromkeys(("sound", "steps", "paper-cifar", "imagenet"), ("done", {})), done.stderr
    assert done.returncode == 0
    values = {figure["name"]: figure["value"] for stage in whole["stages"].values() for figure in stage["figures"]}
    assert values["same bytes twice: fine-tuned student"] is True
    assert values["same class as on a CPU"] == 100
    assert len(values) > 50
    # What a device machine hands back is a handful of flat files.
    assert len(list((tmp_path / "proof").iterdir())) <= 8
