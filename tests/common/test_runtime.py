"""The ground both programs stand on: files, settings, flags, run folders, metrics, checkpoints, errors."""

import errno
import json
import os
import re
import time
import zipfile
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import Field

from clusterq_cli.flags import with_flags
from clusterq_cli.main import run_guarded
from clusterq_common.device import setup as device
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_cuda, prepare_device, training_autocast
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_file, atomic_write
from clusterq_common.progress.console import expecting, info, print_result, progress, quietly, warn
from clusterq_common.progress.meter import Meter, memory
from clusterq_common.progress.time_budget import Phase
from clusterq_common.quant.bits import Bits
from clusterq_common.quant.config import QuantConfig
from clusterq_common.run.checkpoint import load_checkpoint, save_checkpoint
from clusterq_common.run.metrics import MetricsLog
from clusterq_common.run.records import read_metrics
from clusterq_common.run.run_folder import open_run_folder
from clusterq_common.run.seeding import stream
from clusterq_common.settings import Settings, merged

CPU = torch.device("cpu")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"half of the new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("text", ["w4", "w1a4", "w9a4", "4a4", "w4a4x", "", "w04a", "a4w4", "w16a16"])
def test_bits_that_are_refused(text: str) -> None:
    with pytest.raises(ClusterqError, match=r"^bits: .*expected w4a4"):
        Bits.parse(text)


def test_bits_and_quant_settings() -> None:
    assert Bits.parse(" W8A32 ") == Bits(8, 32)
    assert QuantConfig(bits="W4A8").bits == "w4a8"
    with pytest.raises(ClusterqError, match=r"^first_last_bits: expected 2 to 8"):
        QuantConfig.validated({"first_last_bits": 9})
    with pytest.raises(ClusterqError, match=r"run\.yaml: nonsense: extra inputs"):
        QuantConfig.validated({"nonsense": 1}, source="run.yaml")


def test_settings_survive_yaml(tmp_path: Path) -> None:
    config = QuantConfig(bits="w3a3", quantizer="asymmetric")
    config.to_yaml(tmp_path / "c.yaml")
    assert QuantConfig.from_yaml(tmp_path / "c.yaml") == config
    for text, sentence in (("[1, 2]", "expected a YAML mapping"), ("a: [", "not readable as YAML"), ("x: 1", "extra inputs")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ClusterqError, match=sentence):
            QuantConfig.from_yaml(tmp_path / "c.yaml")


def test_merging_changes_neither_side() -> None:
    base, over = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "c": 6}
    assert merged(base, over) == {"a": {"x": 1, "y": 5}, "b": 3, "c": 6}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}


class Demo(Settings):
    """Settings of a made-up command."""

    rate: float = Field(0.5, description="how fast")
    parts: tuple[int, ...] | None = Field(None, description="which parts")
    side: Literal["left", "right"] = Field("left", description="which of left, and right")
    way: Literal["up", "down"] = Field("up", description="where to")
    style: str = Field("bold", description="how", json_schema_extra={"choices": ["bold", "brief"]})
    loud: bool = Field(False, description="make noise", json_schema_extra={"flag": "--loud/--quiet"})


def test_flags_are_made_from_settings() -> None:
    made: dict[str, dict[str, Any]] = {}

    def option(default: None, spelling: str, **about: Any) -> str:
        assert default is None
        made[spelling] = about
        return spelling

    got: list[object] = []

    @with_flags({"demo": Demo}, option, {"demo": {"rate": "0.5; quick: 2"}})
    def command(flags: dict[str, dict[str, Any]], out: str = "x") -> None:
        got.append((flags, out))

    assert made["--side"] | {"rich_help_panel": ""} == {
        "help": "which of left, and right (default: left)",
        "show_default": False,
        "rich_help_panel": "",
        "metavar": "<name>",
    }
    assert made["--way"]["help"] == "where to (one of up, down; default: up)"
    assert made["--rate"]["metavar"] is None
    assert made["--style"]["help"] == "how (one of bold, brief; default: bold)"
    assert made["--style"]["autocompletion"]("br") == ["brief"]
    assert made["--loud/--quiet"]["help"] == "make noise (default: off)"
    assert made["--rate"]["help"] == "how fast (default: 0.5; quick: 2)"
    assert made["--parts"]["help"] == "which parts"
    assert made["--loud/--quiet"]["rich_help_panel"] == "Demo"
    command(rate=0.25, parts=None, side=None, way=None, style=None, loud=None, out="y")
    assert got == [({"demo": {"rate": 0.25}}, "y")]
    with pytest.raises(ValueError, match="two sections have a field 'rate'"):
        with_flags({"one": Demo, "two": Demo}, option)(lambda flags: None)


def test_run_folders(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert open_run_folder(run) is False
    assert open_run_folder(run, resume=True) is False, "nothing there yet: a new run"
    (run / "config.yaml.partial").write_text("the process died h")
    assert open_run_folder(run, resume=True) is False, "the run had not begun"
    assert not list(run.iterdir())
    (run / "config.yaml").write_text("x")
    (run / "shards").mkdir()
    (run / "mine.txt").write_text("kept")
    assert open_run_folder(run, resume=True) is True
    with pytest.raises(ClusterqError, match="is not empty"):
        open_run_folder(run)
    assert open_run_folder(run, overwrite=True) is False
    assert [entry.name for entry in run.iterdir()] == ["mine.txt"], "only a run's own files are deleted"


def test_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    checkpoint = tmp_path / "last.pt"
    log.append_step_values(
        [{"step": 0, "loss": torch.tensor(1.5), "lr": 0.1}, {"step": 1, "loss": torch.tensor(0.5)}], checkpoint
    )
    with pytest.raises(ClusterqError, match=r"loss became inf at step 2.*no checkpoint exists yet"):
        log.append_step_values([{"step": 2, "loss": torch.tensor(float("inf"))}], checkpoint)
    assert read_metrics(path)[2]["loss"] is None, "JSON has no infinity"
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # the process died here
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2]
    MetricsLog(path, keep_before_step=1)
    assert path.read_text() == json.dumps({"step": 0, "loss": 1.5, "lr": 0.1}) + "\n"


def test_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.pt"
    save_checkpoint(path, {"step": 3, "nested": {"x": torch.ones(2)}, "none": None})
    assert load_checkpoint(path, CPU)["nested"]["x"].tolist() == [1, 1]
    with pytest.raises(ClusterqError, match="does not exist"):
        load_checkpoint(tmp_path / "absent", CPU)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(ClusterqError, match=r"packed\.pt is not a readable checkpoint"):  # it may unfold to any size
        load_checkpoint(packed, CPU)
    path.write_bytes(b"junk")
    with pytest.raises(ClusterqError, match="not a readable checkpoint"):
        load_checkpoint(path, CPU)
    torch.save([1], path)
    with pytest.raises(ClusterqError, match="holds list"):
        load_checkpoint(path, CPU)
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(ClusterqError, match="not a readable checkpoint"):
        load_checkpoint(path, CPU)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ClusterqError("--x: bad."), 2, "Error: --x: bad."),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), 2, "/x/y"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_guard(error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        run_guarded(fail)
    assert left.value.code == code
    assert words in capsys.readouterr().err


def test_guard_lets_defects_through() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ZeroDivisionError):
        run_guarded(lambda: fail(ZeroDivisionError()))
    with pytest.raises(OSError, match="odd"):
        run_guarded(lambda: fail(OSError(errno.EBADF, "odd")))


def test_streams_are_keyed() -> None:
    def draw(*key: int | str) -> float:
        return float(torch.rand(1, generator=stream(0, *key)))

    assert draw("a", 1) == draw("a", 1)
    assert len({draw("a", 1), draw("a", 2), draw("b", 1), draw("a", 1, 0)}) == 4


def test_device_and_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    assert prepare_device(RuntimeConfig(device="cpu", threads=1)) == CPU
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
    layer = torch.nn.Linear(2, 2)
    with training_autocast(RuntimeConfig(), CPU):
        assert layer(torch.ones(1, 2)).dtype == torch.float32, "auto is off for students on a CPU"
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "_cpu_computes_bf16", lambda has_it=has_it: has_it)
        with training_autocast(RuntimeConfig(), CPU, images=True):
            assert layer(torch.ones(1, 2)).dtype == expected
    with training_autocast(RuntimeConfig(amp="off"), CPU, images=True):
        assert layer(torch.ones(1, 2)).dtype == torch.float32
    with training_autocast(RuntimeConfig(amp="bf16"), CPU):
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16


def test_progress_in_a_file_and_not_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work", 3, done=1) as ticker:
        ticker.advance(note="first")
        ticker.advance(note="last")
    shown = capsys.readouterr().err
    assert re.fullmatch(r"work: 3/3, in 0 s, last(, [\d.]+ [MG]B memory)?\n", shown), shown
    with quietly(True), progress("work", 3) as ticker:
        ticker.advance(3)
        info("not now")
        warn("but this")
        print_result("and this")
    assert tuple(capsys.readouterr()) == ("and this\n", "Warning: but this\n")


def test_a_note_stays_and_lines_grow_rare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress("work", 100_000, images=4) as ticker:
        for second in range(3600):
            now = float(second)
            ticker.advance(2, note="first" if second == 0 else "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("work: 22/100000, ")
    assert all(", first" in line for line in lines)
    assert "8 images/s" in lines[-1]
    assert 40 < len(lines) < 140, "every ten seconds at first, every minute in the end"
    assert "h " in lines[-1]
    assert " left" in lines[-1]


def test_a_meter_knows_its_own_work_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = Meter(total=1000, done=400, images=10)
    assert (meter.speed, meter.seconds_left) == (0, None)
    for second in range(1, 201):
        now = 100.0 + second
        meter.advance(1 if second <= 100 else 2)
    assert meter.speed == pytest.approx(2), "of the last minute"
    assert meter.seconds_left == pytest.approx((1000 - 400 - 300) / 2)
    assert meter.images_per_second() == "20 images/s"
    assert meter.time() == "2 min 30 s left"


def test_memory_of_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GPU" not in memory()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3_240_000_000)
    assert memory().endswith("3.24 GB GPU")
    if Path("/proc/self/statm").is_file():
        assert re.match(r"[\d.]+ [MG]B memory, ", memory())


def test_deterministic_kernels_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    kept = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        prepare_cuda(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.allow_tf32
        prepare_cuda(deterministic=False)
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def test_progress_shows_the_time_of_the_phases_that_follow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusterq_common.progress.console.LEAST_SECONDS_BETWEEN_LINES", 0.0)
    phases = [Phase("generator", 10), Phase("refinement", 600), Phase("shards", 90)]

    def lines(phase: str) -> list[str]:
        with progress("working", 2, phase=phase) as ticker:
            ticker.advance()
            time.sleep(0.01)
            ticker.advance()
        return capsys.readouterr().err.splitlines()

    with expecting(phases):
        first, last = lines("generator")
        assert "then about 11 min 30 s" in first
        assert "then about" not in last, "the next phase says so itself"
        assert "then about 1 min 30 s" in lines("refinement")[0]
        assert all("then about" not in line for phase in ("shards", "another", "") for line in lines(phase))
    assert all("then about" not in line for line in lines("generator"))
