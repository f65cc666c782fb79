"""Recorded steps of banks and of refinement make the images that plain ones make."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from clusterq_common.device.cuda_graph import PLAIN_STEPS, CudaRecorder, Recorder
from clusterq_common.device.timing import MOST_REPEATS, seconds_of
from clusterq_common.run.run_folder import BANK, CONFIG, SHARDS
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_gen import commands
from clusterq_gen.bank import make
from clusterq_gen.bank.make import BankRun
from clusterq_gen.bank.optimise import BankBatch
from clusterq_gen.estimate import image_step_seconds
from tests.conftest import FACTORY, Cli, DigitsTeacher
from tests.gen.bank_settings import SMALL, settings
from tests.gen.conftest import CPU
from tests.tape import TapeRecorder

STEPS = 12
BANKS = {
    "zeroq": ("zeroq", {}),
    "dsg": ("dsg", {}),
    "intraq": ("intraq", {}),
    "intraq, no crops": ("intraq", {"bank_crop": 0.0}),
    "intraq, crops alone": ("intraq", {"bank_crop": 1.0}),
    "hast": ("intraq", {"bank_crop": 0.0, "bank_class_loss": "ce", "bank_hard_gamma": 2.0, "bank_margin_weight": 0.0}),
}


def start(teacher: Teacher, name: str, recorder: Recorder | None, device: torch.device = CPU) -> BankRun:
    method, bank = BANKS[name]
    # Batches of other classes than the one before.
    train = {"classes_per_batch": 5} if method == "intraq" else {}
    config = settings(teacher.config, method, bank={"bank_steps": STEPS, **bank}, train=train)
    return BankRun.start(config, teacher, device, recorder)


def assert_same(optimised: BankBatch, wanted: BankBatch) -> None:
    for name in ("pixels", "labels", "top1"):
        assert torch.equal(getattr(optimised, name), getattr(wanted, name)), name
    assert optimised.losses == wanted.losses


@pytest.mark.parametrize("name", list(BANKS))
def test_a_replayed_bank_is_the_plain_bank(teacher: Teacher, name: str) -> None:
    recorder = TapeRecorder()
    plain, replayed = start(teacher, name, None), start(teacher, name, recorder)
    for number in range(3):
        assert_same(replayed.optimise(number), plain.optimise(number))
    size = plain.layout.batch_size
    crops = sum(plain.optimiser.draws(size, number, step)[1] is not None for number in range(3) for step in range(STEPS))
    assert (0 < crops < 3 * STEPS) == (name == "intraq")
    whole = 3 * STEPS - crops
    # One recording for all batches.
    assert recorder.recorded == (whole > 0)
    assert recorder.plain_steps == crops + min(PLAIN_STEPS, whole)
    assert recorder.plain_steps + recorder.replays == 3 * STEPS


@pytest.mark.parametrize("name", ["dsg", "intraq"])
def test_a_replayed_batch_does_not_depend_on_the_one_before(teacher: Teacher, name: str) -> None:
    run = start(teacher, name, TapeRecorder())
    first, second = run.optimise(0), run.optimise(1)
    assert not torch.equal(first.pixels, second.pixels)
    assert_same(run.optimise(0), first)
    assert_same(start(teacher, name, TapeRecorder()).optimise(1), second)


def test_a_bank_of_replayed_steps_has_the_same_bytes(
    digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = TapeRecorder()
    monkeypatch.setattr(commands, "need_cuda_graphs", lambda _: None)
    monkeypatch.setattr(make, "cuda_recorder", lambda _: recorder)
    folders = {name: tmp_path / name for name in ("--no-cuda-graphs", "--cuda-graphs")}
    for name, folder in folders.items():
        done = gen(
            "train", *digits_teacher.flags, "--preset", "quick", "--method", "dsg", *SMALL, name, "--no-report", "--out", folder
        )
        assert done.code == 0, done.err
        assert recorder.recorded == (name == "--cuda-graphs")
    plain, replayed = (contents(folder / BANK) | contents(folder / SHARDS) for folder in folders.values())
    assert sum(name.endswith(".safetensors") for name in plain) == 3
    # The digest of its making is part of a batch's file: what was begun with graphs can be finished without.
    assert replayed == plain
    generations = [read_manifest(folder / SHARDS).generation for folder in folders.values()]
    assert generations[0] == generations[1]


def test_refinement_goes_by_the_run_where_it_can(
    digits_run: Path, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recorder = tmp_path / "run", TapeRecorder()
    shutil.copytree(digits_run, run)
    config = yaml.safe_load((run / CONFIG).read_text())
    config["train"]["cuda_graphs"] = True
    (run / CONFIG).write_text(yaml.safe_dump(config))
    # Ten classes share batches of 30 images.
    flags = [
        "--per-class",
        12,
        "--heldout-per-class",
        1,
        "--refine-steps",
        10,
        "--refine-batch",
        30,
        "--device",
        "cpu",
        "--arch",
        FACTORY,
    ]
    done = gen("emit", "--run", run, *flags, "--out", tmp_path / "plain")
    assert done.code == 0, "there is no GPU, and none is needed"
    monkeypatch.setattr(commands, "recorder_if", lambda wanted, _: recorder if wanted else None)
    # Of a run without graphs nothing is recorded.
    assert gen("emit", "--run", digits_run, *flags, "--out", tmp_path / "other").code == 0
    assert recorder.plain_steps == 0
    done = gen("emit", "--run", run, *flags, "--out", tmp_path / "replayed")
    assert done.code == 0, done.err
    assert contents(tmp_path / "replayed") == contents(tmp_path / "plain") == contents(tmp_path / "other")
    assert recorder.recorded == 1
    assert recorder.plain_steps == PLAIN_STEPS
    steps = recorder.plain_steps + recorder.replays
    assert steps % 10 == 0
    assert steps >= 40, "several batches"


def test_an_estimate_times_replayed_steps_where_the_run_replays_them(teacher: Teacher) -> None:
    recorder = TapeRecorder()
    config = settings(teacher.config, "zeroq", bank={"bank_steps": STEPS})
    assert image_step_seconds(config.bank, config, teacher, CPU, recorder) > 0
    # The recording and its first replay come before the timed ones, of which there are at least two.
    assert (recorder.plain_steps, recorder.recorded) == (PLAIN_STEPS, 1)
    assert 1 + 2 <= recorder.replays <= 1 + MOST_REPEATS


@pytest.mark.gpu
def test_on_a_gpu_an_estimate_is_near_the_time_of_whole_batches(teacher: Teacher) -> None:
    device = torch.device("cuda")
    own = load_teacher(teacher.config, device=device)
    config = settings(own.config, "zeroq", bank={"bank_steps": 200}, train={"batch_size": 64})
    expected = 64 * 200 * image_step_seconds(config.bank, config, own, device, None)
    run = BankRun.start(config, own, device)
    assert seconds_of(lambda: run.optimise(0), device, before=1) == pytest.approx(expected, rel=0.6)


def contents(folder: Path) -> dict[str, bytes]:
    """Of the batches and the shards in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in {".safetensors", ".tar"}}


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(BANKS))
def test_on_a_gpu_replayed_steps_make_nearly_the_same_images(teacher: Teacher, name: str) -> None:
    device = torch.device("cuda")
    own = load_teacher(teacher.config, device=device)
    plain, replayed = (start(own, name, recorder, device) for recorder in (None, CudaRecorder(device)))
    for number in range(2):
        wanted, optimised = plain.optimise(number), replayed.optimise(number)
        assert optimised.losses == pytest.approx(wanted.losses, rel=0.05, abs=1e-3)
        assert (optimised.pixels.float() - wanted.pixels.float()).abs().mean() < 4


@pytest.mark.gpu
def test_on_a_gpu_plain_steps_wait_for_nothing(teacher: Teacher) -> None:
    device = torch.device("cuda")
    own = load_teacher(teacher.config, device=device)
    run = start(own, "intraq", None, device)
    labels, size = run.layout.labels(0), run.layout.batch_size
    assert labels is not None
    spec, optimiser = own.spec, run.optimiser
    steps = optimiser.steps_for(torch.Size((size, *spec.shape)), labelled=True)
    steps.begin(torch.zeros(size, *spec.shape), labels)
    for step in range(STEPS):
        # The first step makes the optimizer's state.
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        steps.take_step(0.1, *optimiser.draws(size, 0, step))
    torch.cuda.set_sync_debug_mode("default")
