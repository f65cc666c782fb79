"""Recorded steps of fine-tuning do what plain ones do."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from clusterq_common.device.cuda_graph import PLAIN_STEPS
from clusterq_common.device.rates import set_group_rate
from clusterq_common.quant import fake_quantize as straight_through
from clusterq_common.quant.fake_quantize import broadcast_shape
from clusterq_common.quant.grid import Grid
from clusterq_common.run import kept
from clusterq_common.run.checkpoint import save_checkpoint
from clusterq_finetune import commands
from clusterq_finetune.recipes import block_steps, distill, reconstruct
from clusterq_finetune.recipes.block_steps import annealed_beta
from clusterq_finetune.recipes.optimizer import learning_rate
from tests.conftest import Cli
from tests.tape import TapeRecorder

FLAGS = [
    "--bits",
    "w3a3",
    "--epochs",
    "2",
    "--steps-per-epoch",
    "0",
    "--batch-size",
    "25",
    "--checkpoint-seconds",
    "0",
    "--json",
]


def inside(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, grid: Grid) -> Tensor:
    """As on a GPU: on a CPU limits are numbers, which a recording would keep while learned steps move."""
    shape = broadcast_shape(x, axis)
    low, high = (((end - zero_point) * scale).view(shape) for end in (grid.low, grid.high))
    return grad * ((x >= low) & (x <= high))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    """In the place of CUDA graphs. Rates and exponents are rounded as they are in a tensor, so that plain runs have the same ones."""
    tape = TapeRecorder()
    monkeypatch.setattr(straight_through, "_inside", inside)
    for module in (distill, reconstruct):
        monkeypatch.setattr(module, "cuda_recorder", lambda _: tape)
    monkeypatch.setattr(commands, "need_cuda_graphs", lambda _: None)
    monkeypatch.setattr(distill, "learning_rate", lambda *given: single(learning_rate(*given)))
    monkeypatch.setattr(block_steps, "set_group_rate", lambda group, rate: set_group_rate(group, single(rate)))
    # None stays None: there is no regulariser.
    monkeypatch.setattr(block_steps, "annealed_beta", lambda *given: (beta := annealed_beta(*given)) and single(beta))
    return tape


def single(value: float) -> float:
    """In float32's precision."""
    return float(np.float32(value))


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--augment", "crop-flip", "--low-pass", "0.5", "--weight-ema", "0.9", "--ce-min-confidence", "0.5"],
        ["--optimizer", "sgd", "--lr", "1e-3", "--lr-unit", "absolute", "--feature-weight", "1", "--quantizer", "asymmetric"],
    ],
    ids=["default", "all on images", "sgd, features"],
)
def test_a_replayed_run_is_the_plain_run(
    flags: list[str], recorder: TapeRecorder, digits_run: Path, finetune: Cli, tmp_path: Path
) -> None:
    plain = finetune("--shards", digits_run, *FLAGS, *flags, "--out", tmp_path / "plain")
    assert (plain.code, recorder.plain_steps) == (0, 0), plain.err
    replayed = finetune("--shards", digits_run, *FLAGS, *flags, "--cuda-graphs", "--out", tmp_path / "replayed")
    assert replayed.code == 0, replayed.err
    wanted, graph_result = (json.loads(done.out.splitlines()[-1]) for done in (plain, replayed))
    assert graph_result["student"]["sha256"] == wanted["student"]["sha256"]
    assert (tmp_path / "replayed" / "metrics.jsonl").read_text() == (tmp_path / "plain" / "metrics.jsonl").read_text()
    # The learning rate falls at each step, and is recorded once. Each pass ends with a smaller batch.
    per_epoch, rest = divmod(wanted["shards"]["training_images"], 25)
    assert rest
    assert recorder.recorded == 1
    assert recorder.plain_steps == PLAIN_STEPS + 2
    assert recorder.replays == 2 * per_epoch - PLAIN_STEPS


@pytest.mark.parametrize(
    "flags",
    [[], ["--quantizer", "asymmetric", "--drop-probability", "0", "--weight-step-lr", "0"]],
    ids=["default", "asymmetric, nothing dropped"],
)
def test_blocks_are_reconstructed_alike_by_replayed_steps(
    flags: list[str], recorder: TapeRecorder, digits_run: Path, finetune: Cli, tmp_path: Path
) -> None:
    steps = 25
    flags = ["--bits", "w3a3", "--epochs", "0", "--reconstruct", "block", "--reconstruct-steps", f"{steps}", *flags, "--json"]
    results = {}
    for name in ("--no-cuda-graphs", "--cuda-graphs"):
        done = finetune("--shards", digits_run, *flags, name, "--out", tmp_path / name)
        assert done.code == 0, done.err
        results[name] = json.loads(done.out.splitlines()[-1])
        assert (recorder.recorded > 0) == (name == "--cuda-graphs")
    plain, replayed = results.values()
    assert replayed["reconstruction"] == plain["reconstruction"]
    assert replayed["student"]["sha256"] == plain["student"]["sha256"]
    # Each block is recorded without the rounding's regulariser and with it, whose exponent falls at each step.
    blocks = len(plain["reconstruction"])
    assert recorder.recorded == 2 * blocks
    assert recorder.replays == blocks * (steps - 2 * PLAIN_STEPS)


def test_resumed_it_is_the_uninterrupted_one(
    recorder: TapeRecorder, digits_run: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_then_stop(path: Path, state: dict[str, object]) -> None:
        save_checkpoint(path, state)
        raise KeyboardInterrupt

    flags = ["--shards", digits_run, *FLAGS, "--cuda-graphs"]
    whole = finetune(*flags, "--out", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(kept, "save_checkpoint", save_then_stop)
        assert finetune(*flags, "--out", tmp_path / "cut").code == 130
    done = finetune(*flags, "--out", tmp_path / "cut", "--resume")
    assert done.code == 0, done.err
    digests = [json.loads(each.out.splitlines()[-1])["student"]["sha256"] for each in (whole, done)]
    assert digests[0] == digests[1]


def test_without_a_gpu_it_is_refused(digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    done = finetune("--shards", digits_run, *FLAGS, "--cuda-graphs", "--device", "cpu", "--out", tmp_path / "out")
    assert done.code == 2
    assert "--cuda-graphs: found the device cpu, expected one process on a CUDA device" in done.err
    assert not (tmp_path / "out").exists(), "it is said before anything is made"


@pytest.mark.gpu
def test_on_a_gpu_replayed_steps_train_alike(digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    finals = []
    flags = [*FLAGS, "--reconstruct", "block", "--reconstruct-steps", "25"]
    for name in ("--no-cuda-graphs", "--cuda-graphs"):
        done = finetune("--shards", digits_run, *flags, name, "--device", "cuda", "--out", tmp_path / name)
        assert done.code == 0, done.err
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        finals.append(records[-2]["loss/kl"])
    assert finals[1] == pytest.approx(finals[0], rel=0.02)
