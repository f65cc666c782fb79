"""Contents of a checkpoint. --resume takes nothing else for one, and runs no code out of it."""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, Cli, DigitsTeacher


@dataclass(frozen=True)
class Resumable:
    """A run of one program that has a checkpoint, and how to go on with a copy of it."""

    folder: Path
    resume: Callable[[Path], Any]

    @property
    def checkpoint(self) -> bytes:
        return (self.folder / "checkpoints" / "last.pt").read_bytes()


@pytest.fixture(scope="module")
def training(digits_run: Path, digits_teacher: DigitsTeacher, gen: Cli, tmp_path_factory: pytest.TempPathFactory) -> Resumable:
    run = tmp_path_factory.mktemp("training") / "out"
    # As it is while the generator trains: the finished one would not be trained again.
    shutil.copytree(digits_run, run, ignore=shutil.ignore_patterns("*.safetensors", "shards"))
    return Resumable(run, lambda out: gen("train", *digits_teacher.flags, *TINY, "--out", out, "--resume"))


@pytest.fixture(scope="module")
def tuning(digits_run: Path, finetune: Cli, tmp_path_factory: pytest.TempPathFactory) -> Resumable:
    run = tmp_path_factory.mktemp("tuning") / "out"
    flags = ["--shards", digits_run, "--bits", "w3a3", "--epochs", 1, "--steps-per-epoch", 0]
    done = finetune(*flags, "--out", run)
    assert done.code == 0, done.err
    (run / "student.safetensors").unlink()
    (run / "result.json").unlink()
    return Resumable(run, lambda out: finetune(*flags, "--out", out, "--resume"))


@pytest.fixture(params=["training", "tuning"])
def program(request: pytest.FixtureRequest) -> Resumable:
    resumable: Resumable = request.getfixturevalue(request.param)
    return resumable


@pytest.mark.parametrize(("name", "steps", "optimizers"), [("training", 360, 2), ("tuning", 1, 1)])
def test_what_it_holds(name: str, steps: int, optimizers: int, request: pytest.FixtureRequest) -> None:
    run: Resumable = request.getfixturevalue(name)
    state = torch.load(io.BytesIO(run.checkpoint), weights_only=True)
    assert state["step"] == steps
    held = [value for key, value in state.items() if key.endswith("optimizer")]
    assert len(held) == optimizers
    for optimizer in held:
        assert optimizer["param_groups"]
        assert any(
            torch.is_tensor(moment) and moment.any() for moments in optimizer["state"].values() for moment in moments.values()
        )
    ranges = {key: value for key, value in state["student"].items() if key.endswith("scale")}
    assert len(ranges) == 12, "of the weights and of the inputs of six layers"
    assert all((scale > 0).all() for scale in ranges.values())


class Malicious:
    """Makes a file when it is unpickled by a reader that runs what pickles say."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.trace), "w")


def test_code_in_a_checkpoint_is_not_run(program: Resumable, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    state = torch.load(io.BytesIO(program.checkpoint), weights_only=True)
    buffer = io.BytesIO()
    torch.save({**state, "extra": Malicious(trace)}, buffer)
    refused(program, buffer.getvalue(), tmp_path)
    assert not trace.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert trace.exists(), "it would have done it"


def saved(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """A checkpoint that torch can read, but changed."""

    def spoil(good: bytes) -> bytes:
        state = torch.load(io.BytesIO(good), weights_only=True)
        changed = change(state)
        buffer = io.BytesIO()
        torch.save(state if changed is None else changed, buffer)
        return buffer.getvalue()

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda good: b"", id="empty"),
        pytest.param(lambda good: b"garbage" * 1000, id="garbage"),
        pytest.param(lambda good: good[: len(good) // 2], id="half"),
        pytest.param(lambda good: good[:-1], id="without its last byte"),
        pytest.param(saved(lambda state: list(state)), id="a list"),
        pytest.param(saved(lambda state: {}), id="an empty dictionary"),
        pytest.param(saved(lambda state: state.pop("student")), id="no student"),
        pytest.param(saved(lambda state: state["student"].popitem() and None), id="a student without its last tensor"),
        pytest.param(saved(lambda state: {**state, "optimizer": None}), id="no optimizer state"),
        pytest.param(saved(lambda state: {**state, "optimizer": {"state": {}, "param_groups": []}}), id="another optimizer"),
    ],
)
def test_what_is_no_checkpoint_of_this_run_is_refused(
    spoil: Callable[[bytes], bytes], program: Resumable, tmp_path: Path
) -> None:
    refused(program, spoil(program.checkpoint), tmp_path)


def refused(program: Resumable, checkpoint: bytes, tmp_path: Path) -> None:
    """Exit code 2 and one sentence with the file's name and what to do; the file stays."""
    run = tmp_path / "out"
    shutil.copytree(program.folder, run)
    path = run / "checkpoints" / "last.pt"
    path.write_bytes(checkpoint)
    done = program.resume(run)
    assert done.code == 2, done.err
    sentence = done.err.splitlines()[-1]
    for words in ("Error: ", str(path), "--overwrite"):
        assert words in sentence
    assert "Traceback" not in done.err
    assert path.read_bytes() == checkpoint
