"""Both programs under torchrun, two processes: one dies on the way, the job says so and goes on later."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from clusterq_common.shards.manifest import read_manifest
from tests import preloaded
from tests.conftest import TINY, Cli, DigitsTeacher

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes of a job through /proc")

# Long enough to be interrupted, and for images that the classifier tells apart.
SHORT = [*TINY, "--steps-per-epoch", "20"]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
# Names the job in the environment of its processes.
JOB = "CLUSTERQ_TEST_JOB"


def start(program: str, *arguments: object, job: str = "") -> subprocess.Popen[str]:
    # Without -- torchrun takes some options for its own.
    command = [*LAUNCHER, program, "--", *(str(argument) for argument in arguments), "--threads", "1"]
    return subprocess.Popen(
        command, env={**preloaded.environment(), JOB: job}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(job: subprocess.Popen[str]) -> str:
    out, err = job.communicate(timeout=180)
    assert job.returncode == 0, err
    return out


def process_of(job: str, rank: int) -> int:
    """The process that torchrun started with this rank: its environment names job and rank."""
    numbers = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # ended, or somebody else's
            names = environ.read_bytes().split(b"\0")
            if {f"{JOB}={job}".encode(), f"RANK={rank}".encode()} <= set(names):
                numbers.append(int(environ.parent.name))
    assert len(numbers) == 1
    return numbers[0]


def test_a_whole_job(digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["train", *digits_teacher.flags, *SHORT, "--out", out]
    job = start("clusterq_gen", *arguments, job=str(out))
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process_of(str(out), 1), signal.SIGKILL)
    _, err = job.communicate(timeout=180)
    assert job.returncode != 0
    assert "another process of this job has ended" in err or "Signal 9" in err
    assert not (out / "generator.safetensors").exists()

    finish(start("clusterq_gen", *arguments, "--resume"))
    assert read_manifest(out / "shards").splits["train"].per_class == [12] * 10
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(120)), "one writer"
    assert not list(out.rglob("*.partial"))

    flags = [
        "--shards",
        out,
        "--bits",
        "w4a4",
        "--batchnorm",
        "corrected",
        "--reconstruct",
        "none",
        "--epochs",
        2,
        "--steps-per-epoch",
        0,
        "--batch-size",
        32,
        "--val",
        digits_teacher.val,
        "--json",
    ]
    alone = finetune(*flags, "--out", tmp_path / "alone")
    assert alone.code == 0, alone.err
    shared = finish(start("clusterq_finetune", *flags, "--out", tmp_path / "shared"))
    assert len(shared.splitlines()) == len(alone.out.splitlines()), "one speaker"
    from_one, from_two = (json.loads(text.splitlines()[-1]) for text in (alone.out, shared))
    assert (from_one["processes"], from_two["processes"]) == (1, 2)
    assert from_two["teacher"]["top1"] == from_one["teacher"]["top1"]
    assert from_two["teacher"]["images"] == from_one["teacher"]["images"]
    assert from_two["calibrated"]["top1"] == pytest.approx(from_one["calibrated"]["top1"], abs=0.5)
    assert from_two["student"]["top1"] == pytest.approx(from_one["student"]["top1"], abs=2)

    again = finish(
        start("clusterq_finetune", "evaluate", "--student", tmp_path / "shared", "--val", digits_teacher.val, "--json")
    )
    assert json.loads(again.splitlines()[-1])["student"]["top1"] == from_two["student"]["top1"]


def test_a_batch_that_cannot_be_shared_is_refused(digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    job = start("clusterq_gen", "train", *digits_teacher.flags, *TINY, "--batch-size", 41, "--out", tmp_path / "out")
    _, err = job.communicate(timeout=180)
    assert job.returncode != 0
    assert "--batch-size: 41 images cannot be shared evenly by 2 processes" in err
