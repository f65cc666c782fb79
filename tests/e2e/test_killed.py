"""SIGKILL, after which nothing gets a chance to tidy up: --resume still leads to what an uninterrupted run gives."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Cli, DigitsTeacher
from tests.e2e import attempts

SEED = 20
KILLS = 10
# The longest wait between reaching a point of a run and the kill, about the time of an epoch here.
MOST_SECONDS = 0.1
STEPS_A_SHARD_COUNTS = 8
# After so many seconds a process hangs.
PATIENCE = 300.0

# Enough training for the teacher to agree with some images, and to reject many.
GEN = ["--preset", "quick", "--epochs", "6", "--warmup-epochs", "2", "--steps-per-epoch", "8", "--batch-size", "20"]
GEN += ["--width", "16", "--lr", "0.01", "--bits", "w4a4", "--checkpoint-seconds", "0", "--threads", "1"]
GEN += ["--per-class", "3", "--heldout-per-class", "1", "--samples-per-shard", "6", "--refine-steps", "5"]
FINETUNE = [
    "--recipe",
    "fast",
    "--reconstruct-steps",
    "3",
    "--bits",
    "w3a3",
    "--epochs",
    "8",
    "--steps-per-epoch",
    "0",
    "--batch-size",
    "8",
    "--checkpoint-seconds",
    "0",
    "--threads",
    "1",
]


@dataclass(frozen=True)
class Job:
    """A command line without --out, and the folder of its uninterrupted run."""

    program: str
    arguments: list[str]
    whole: Path


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """The processes import from where this one does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, digits_teacher: DigitsTeacher, gen: Cli) -> Job:
    whole = tmp_path_factory.mktemp("training") / "out"
    arguments = ["train", *digits_teacher.flags, *GEN, "--report"]
    done = gen(*arguments, "--out", whole)
    assert done.code == 0, done.err
    return Job("gen", arguments, whole)


@pytest.fixture(scope="module")
def tuning(training: Job, tmp_path_factory: pytest.TempPathFactory, digits_teacher: DigitsTeacher, finetune: Cli) -> Job:
    whole = tmp_path_factory.mktemp("tuning") / "out"
    arguments = ["--shards", str(training.whole), *FINETUNE, "--report", "--val", str(digits_teacher.val)]
    done = finetune(*arguments, "--out", whole)
    assert done.code == 0, done.err
    return Job("finetune", arguments, whole)


@pytest.mark.parametrize("name", ["training", "tuning"])
def test_killed_at_random_points(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    job: Job = request.getfixturevalue(name)
    run, messages = tmp_path / "out", tmp_path / "messages"
    drawn = random.Random(SEED)
    points = sorted(drawn.randrange(progress(job.whole)) for _ in range(KILLS))
    killed: list[int] = []
    arguments = [*job.arguments, "--out", str(run), "--resume"]
    for point in points:
        process = attempts.start(job.program, arguments, messages)
        deadline = time.monotonic() + PATIENCE
        while progress(run) < point and process.is_alive():
            assert time.monotonic() < deadline, (SEED, killed, point, messages.read_text())
            time.sleep(0.002)
        process.join(drawn.uniform(0, MOST_SECONDS))
        process.kill()
        process.join()
        assert process.exitcode in {-signal.SIGKILL, 0}, (SEED, killed, point, messages.read_text())
        if process.exitcode == 0:  # it was quicker than this process; the next one has to die on a run of its own
            check(run, job.whole)
            shutil.rmtree(run)
        else:
            killed.append(point)
    assert len(killed) > KILLS / 2, (SEED, points, killed)
    last = attempts.start(job.program, arguments, messages)
    last.join(PATIENCE)
    assert last.exitcode == 0, (SEED, killed, messages.read_text())
    check(run, job.whole, f"seed {SEED}, killed at {killed}")


@pytest.mark.parametrize("name", ["training", "tuning"])
def test_killed_as_each_file_is_about_to_appear(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    job: Job = request.getfixturevalue(name)
    run, messages = tmp_path / "out", tmp_path / "messages"
    survived: list[str] = []
    arguments = [*job.arguments, "--out", str(run), "--resume"]
    while True:
        process = attempts.start_deadly(job.program, arguments, messages, run, survived)
        process.join(PATIENCE)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, (survived, messages.read_text())
        survived.append(run.with_name("died-at").read_text())
    assert {"config.yaml", "metrics.jsonl", "checkpoints/last.pt", "student.safetensors"} <= set(survived)
    assert ("checkpoints/reconstructed.pt" in survived) == (name == "tuning")
    check(run, job.whole)


def progress(run: Path) -> int:
    """How far a run is, in steps on record."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
    return lines + STEPS_A_SHARD_COUNTS * len(list(run.glob("shards/*.tar")))


def check(run: Path, whole: Path, story: str = "") -> None:
    """The same files with the same bytes, apart from what tells of the process that wrote them."""
    left, expected = contents(run), contents(whole)
    assert left.keys() ^ expected.keys() == set(), story
    assert [path for path in expected if left[path] != expected[path]] == [], story
    if (whole / "result.json").is_file():
        assert facts(run) == facts(whole), story


def contents(run: Path) -> dict[str, bytes]:
    own = {"environment.json", "result.json", "last.pt", "report.html"}
    files = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    return {name: b"" if path.name in own else path.read_bytes() for name, path in files.items()}


def facts(run: Path) -> dict[str, object]:
    """Contents of result.json, without times and the folder."""
    result = json.loads((run / "result.json").read_text())
    timeless = {"images_per_second", "decode_seconds"}
    for name in ("teacher", "calibrated", "student"):
        result[name] = {key: value for key, value in result[name].items() if key not in timeless}
    return {key: value for key, value in result.items() if key not in {"seconds", "out"}}
