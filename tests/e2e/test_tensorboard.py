"""--tensorboard: event files say what metrics.jsonl says, once, also after an interruption."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterq_common.run import kept
from tests.conftest import Cli, DigitsTeacher

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="an extra of its own")

GEN = ["--preset", "quick", "--epochs", 4, "--steps-per-epoch", 3, "--warmup-epochs", 1, "--width", 8, "--batch-size", 20]
GEN += ["--per-class", 2, "--keep-misclassified", "--no-report", "--checkpoint-seconds", 0]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars that TensorBoard reads: name -> (step, value), in its order."""
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def pictures(run: Path) -> list[tuple[int, bytes]]:
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return [(event.step, event.encoded_image_string) for event in events.Images("samples")]


def recorded(run: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name not in {"step", "epoch"} and value is not None:
                curves.setdefault(name, []).append((record["step"], value))
    return curves


def agree(run: Path) -> None:
    shown, kept = scalars(run), recorded(run)
    assert shown.keys() == kept.keys()
    for name, points in kept.items():
        events = sorted(shown[name])  # a bank's batches may be finished in any order
        assert [step for step, _ in events] == [step for step, _ in points], name
        assert [value for _, value in events] == pytest.approx([value for _, value in points], rel=1e-6), name


def stopping(save: Callable[..., None], step: int) -> Callable[..., None]:
    def save_then_stop(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        if state["step"] == step:
            raise KeyboardInterrupt

    return save_then_stop


def test_a_generator(digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, save = tmp_path / "run", kept.save_checkpoint
    flags = ["train", *digits_teacher.flags, *GEN, "--out", run, "--tensorboard"]
    monkeypatch.setattr(kept, "save_checkpoint", stopping(save, 6))
    assert gen(*flags).code == 130
    assert max(step for step, _ in scalars(run)["loss/class"]) == 5, "written as the run goes on"
    # What an interrupted run may have written beyond its checkpoint.
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss/class": 77.0}) + "\n")
    monkeypatch.setattr(kept, "save_checkpoint", save)
    done = gen(*flags[:-1], "--resume")
    assert done.code == 0, done.err
    agree(run)
    assert [step for step, _ in scalars(run)["loss/class"]] == list(range(12))
    grids = sorted((run / "samples").glob("epoch-*.png"))
    assert pictures(run) == [(3 * epoch - 1, grid.read_bytes()) for epoch, grid in enumerate(grids, start=1)]
    for path in (run / "tensorboard").iterdir():
        path.unlink()
    assert gen(*flags, "--resume").code == 0, "a finished training"
    agree(run)
    assert len(pictures(run)) == 4


def test_a_bank(digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["train", *digits_teacher.flags, "--preset", "quick", "--method", "intraq", "--bank-steps", 2, "--batch-size", 20]
    flags += ["--per-class", 4, "--keep-misclassified", "--no-report", "--out", run]
    assert gen(*flags, "--tensorboard").code == 0
    agree(run)
    assert pictures(run)[0][1] == (run / "samples" / "bank.png").read_bytes()
    batch = sorted((run / "bank").glob("*.safetensors"))[1]
    batch.unlink()
    assert gen(*flags, "--resume").code == 0
    agree(run)
    (step,) = {step for step, _ in pictures(run)}
    assert step == len(list((run / "bank").glob("*.safetensors"))) - 1


def test_a_fine_tuning(digits_run: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, save = tmp_path / "run", kept.save_checkpoint
    flags = [
        "--shards",
        digits_run,
        "--bits",
        "w4a4",
        "--epochs",
        3,
        "--steps-per-epoch",
        0,
        "--batch-size",
        32,
        "--checkpoint-seconds",
        0,
    ]
    flags += ["--no-report", "--out", run]
    monkeypatch.setattr(kept, "save_checkpoint", stopping(save, 8))
    assert finetune(*flags).code == 130
    assert not (run / "tensorboard").exists(), "only where it is asked for"
    monkeypatch.setattr(kept, "save_checkpoint", save)
    done = finetune(*flags, "--resume", "--tensorboard")
    assert done.code == 0, done.err
    agree(run)
    shown = scalars(run)
    assert [step for step, _ in shown["loss/kl"]] == list(range(12)), "also of the steps before"
    assert [step for step, _ in shown["heldout/agreement"]] == [3, 7, 11]
    (run / "tensorboard" / "mine.txt").write_text("kept")
    assert finetune(*flags, "--overwrite").code == 0
    assert not (run / "tensorboard").exists(), "an earlier run's events are not taken for this one's"


def test_what_is_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    from clusterq_common.run.metrics import MetricsLog

    log = MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)
    log.append([{"step": 0, "loss": 1.0}, {"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5, "word": "x"}])
    log.close()
    assert scalars(tmp_path) == {"loss": [(0, 1.0), (2, 0.5)]}


def test_without_the_package(
    digits_teacher: DigitsTeacher, digits_run: Path, gen: Cli, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for done in (
        gen("train", *digits_teacher.flags, *GEN, "--out", tmp_path / "out", "--tensorboard"),
        finetune("--shards", digits_run, "--out", tmp_path / "out", "--tensorboard"),
    ):
        assert done.code == 2
        assert "\nError: --tensorboard: the package tensorboard is not installed" in done.err
        assert "pip install '.[tensorboard]' in clusterq's checkout" in done.err
    assert not list(tmp_path.iterdir())
