"""Output of a running command on the terminal: progress on terminals and elsewhere, --quiet, Ctrl-C."""

import codecs
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from clusterq_finetune.cli.main import app as finetune_app
from clusterq_gen.cli import app as gen_app
from clusterq_report import command
from tests import preloaded
from tests.conftest import DISTILLATION, TINY, Cli, DigitsTeacher
from tests.e2e.conftest import SHORT_BEST

COLOUR = re.compile(r"\x1b\[[\d;]*m")
PACE = r"in \d+ s, [\d.,]+ images/s, "
MEMORY = r"(?:, [\d.]+ [MG]B memory)?"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Iterator[list[str]]:
    """Make stdout and stderr of this process a terminal; the list's one element grows with what is written to it."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", **environment}.items():
        monkeypatch.setenv(name, value)
    keyboard, screen = pty.openpty()
    shown = [""]
    # A read may end within a character.
    decoder = codecs.getincrementaldecoder("utf-8")()

    def read() -> None:
        while True:
            try:
                data = os.read(keyboard, 65536)
            except OSError:  # the other end is closed
                return
            shown[0] += decoder.decode(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(screen, "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        patch.setattr(sys, "stderr", file)
        try:
            yield shown
        finally:
            file.flush()
            time.sleep(0.05)  # what is closed before it is read is lost
    reader.join(10)
    os.close(keyboard)


def in_terminal(app: typer.Typer, *words: object) -> None:
    with pytest.raises(SystemExit) as end:
        typer.main.get_command(app).main([str(word) for word in words], prog_name="clusterq")
    assert end.value.code == 0


def test_a_bar_on_a_terminal(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--shards", digits_run, "--bits", "w4a4", "--epochs", 2, "--steps-per-epoch", 0, "--batch-size", 32, "--no-report")
    flags += tuple(DISTILLATION)
    with terminal(monkeypatch) as shown:
        in_terminal(finetune_app, *flags, "--out", tmp_path / "bar")
    assert "\x1b[?25l" in shown[0], "the cursor is hidden while a bar is drawn"
    assert shown[0].rindex("\x1b[?25h") > shown[0].rindex("\x1b[?25l"), "and shown again"
    plain = COLOUR.sub("", shown[0])
    last = plain[plain.rindex("fine-tuning") :]
    assert "━━━━" in last
    assert "8/8" in last
    assert re.search(r"━ 8/8 [\d.,]+ images/s, in \d+ s\s+loss [\d.]+, agrees with teacher \d+ %, held-out [\d.]+ %", last)
    assert re.search(r"[\d.]+ [MG]B memory", last) or not Path("/proc/self/statm").is_file()
    drawn = [line for line in re.split(r"[\r\n]|\x1b\[[\d?]*[A-Zhl]", plain) if "━" in line or "loss" in line]
    assert max(map(len, drawn)) <= 80


def test_no_color_and_dumb_terminals(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--shards", digits_run, "--bits", "w4a4", "--epochs", 1, "--steps-per-epoch", 0, "--batch-size", 32, "--no-report")
    flags += tuple(DISTILLATION)
    coloured = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38|4[0-7]|48|9[0-7])[;m]")
    with terminal(monkeypatch) as shown:
        in_terminal(gen_app, "--help")
    assert coloured.search(shown[0])
    with terminal(monkeypatch, NO_COLOR="1") as shown:
        in_terminal(gen_app, "--help")
        in_terminal(finetune_app, *flags, "--out", tmp_path / "plain")
    assert "━" in shown[0]
    assert not coloured.search(shown[0])
    with terminal(monkeypatch, TERM="dumb") as shown:
        in_terminal(gen_app, "--help")
        in_terminal(finetune_app, *flags, "--out", tmp_path / "dumb")
    assert "fine-tuning: 4/4, " in shown[0]
    assert not CONTROL.search(shown[0].replace("\r\n", "\n"))


def test_lines_in_a_file(
    digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as build servers set it: their logs are no terminals
    done = finetune("--shards", digits_run, *SHORT_BEST, "--val", digits_teacher.val, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert not CONTROL.search(done.err.replace("\n", ""))
    assert re.search(rf"^reconstructing: (\d+)/\1, {PACE}\S+: error [\d.]+ before, .+{MEMORY}$", done.err, re.MULTILINE)
    figures = r"loss [\d.]+, agrees with teacher \d+ %, held-out [\d.]+ %"
    assert re.search(rf"^fine-tuning: 8/8, {PACE}{figures}{MEMORY}$", done.err, re.MULTILINE)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    top1 = ", ".join(f"{name} {result[name]['top1']:.2f} %" for name in ("teacher", "calibrated", "student"))
    assert re.search(rf"^evaluating: (\d+)/\1, {PACE}top-1 {top1}{MEMORY}$", done.err, re.MULTILINE)


def test_lines_of_a_generator(digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path) -> None:
    flags = [*digits_teacher.flags, "--preset", "quick", "--per-class", 2, "--batch-size", 20, "--no-report"]
    small = ["--epochs", 2, "--steps-per-epoch", 2, "--warmup-epochs", 1, "--width", 8]
    done = gen("train", *flags, *small, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    figures = r"class [\d.]+, teacher \d+ %, student agrees \d+ %"
    assert re.search(rf"^training: 4/4, {PACE}{figures}{MEMORY}$", done.err, re.MULTILINE)
    assert re.search(
        rf"^writing images: \d+/30, .+ images/s, teacher agrees on \d+ % of candidates{MEMORY}$", done.err, re.MULTILINE
    )
    bank = gen("train", *flags, "--method", "zeroq", "--bank-steps", 2, "--out", tmp_path / "bank")
    assert re.search(rf"^optimising batches: (\d+)/\1, {PACE}bns [\d.]+ -> [\d.]+, input .+{MEMORY}$", bank.err, re.MULTILINE)


def test_quiet(digits_run: Path, digits_teacher: DigitsTeacher, gen: Cli, finetune: Cli, tmp_path: Path) -> None:
    small = ["--epochs", 2, "--steps-per-epoch", 2, "--warmup-epochs", 1, "--width", 8, "--per-class", 2, "--preset", "quick"]
    run, student = tmp_path / "run", tmp_path / "student"
    base = ["--shards", digits_run, "--bits", "w4a4", "--epochs", 0]
    lines: list[tuple[str, list[object], str]] = [
        (
            "gen",
            ["train", *digits_teacher.flags, *small, "--keep-misclassified", "--out", run],
            rf"shards: {run}/shards \(20 training images\)\n",
        ),
        ("gen", ["emit", "--run", run, "--per-class", 3], rf"shards: {run}/shards \(train: 30, heldout: 10\)\n"),
        ("gen", ["train", *digits_teacher.flags, *TINY, "--out", tmp_path / "no", "--dry-run"], r"teacher: (.+\n)+"),
        ("finetune", [*base, "--out", student], rf"student: {student}/student\.safetensors\n"),
        (
            "finetune",
            ["evaluate", "--student", student, "--val", digits_teacher.val, "--json"],
            r" +student: top-1 .+\n\{.+\}\n",
        ),
        ("finetune", ["reproduce", student, "--out", tmp_path / "again"], r"student: .+\nidentical: .+\n"),
        ("finetune", ["report", student], r"report: .+\n"),
        ("finetune", ["shards", "verify", digits_run], "maker: unsigned: who made it cannot be told\nnothing is wrong\n"),
        ("finetune", ["shards", "subset", digits_run, "--per-class", 2, "--out", tmp_path / "cut"], r".+: train: 20.+\n"),
        ("finetune", ["shards", "merge", digits_run, run, "--out", tmp_path / "both"], r".+: train: .+\n"),
        ("finetune", ["shards", "repair", digits_run, "--out", tmp_path / "mended"], r".+: train: 120.+\n"),
    ]
    for program, words, answer in lines:
        done = (gen if program == "gen" else finetune)(*words, "--quiet")
        assert (done.code, done.err) == (0, ""), words
        assert re.fullmatch(answer, done.out), (words, done.out)
    refused = gen("train", "--arch", "resnet19", "--preset", "quick", "--quiet")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("Error: --arch")
    assert "fine-tuning" not in finetune(*base, "--out", tmp_path / "next").out
    assert "quantized 6 layers" in finetune(*base, "--out", tmp_path / "last").err, "the next command speaks again"


def test_quiet_leaves_warnings(digits_run: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> Path:
        raise RuntimeError("no picture")

    monkeypatch.setattr(command, "draw_report", broken)
    done = finetune("--shards", digits_run, "--bits", "w4a4", "--epochs", 0, "--report", "--out", tmp_path / "run", "--quiet")
    assert done.code == 0
    assert done.err.startswith("Warning: the run is complete, but its report is not")
    assert len(done.err.splitlines()) == 1


def test_ctrl_c_says_how_to_go_on(digits_run: Path, tmp_path: Path, finetune: Cli) -> None:
    out = tmp_path / "a folder"
    base = [
        "--shards",
        str(digits_run),
        "--bits",
        "w4a4",
        "--batch-size",
        "4",
        "--epochs",
        "400",
        "--steps-per-epoch",
        "0",
        "--checkpoint-seconds",
        "0",
        *DISTILLATION,
    ]
    words = [*base, "--overwrite", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "clusterq_finetune", *words],
        env=preloaded.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's job in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 60
    while not (out / "checkpoints" / "last.pt").is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    stopped, advice = err.splitlines()[-2:]
    assert stopped == "Interrupted. What is finished is on disk; to go on:"
    program, *resumed = shlex.split(advice)
    assert (program, resumed) == ("clusterq-finetune", [*base, "--out", str(out), "--resume"])
    contradicting = finetune(*resumed, "--lr", 0.5)
    assert "lr is 0.5" in contradicting.err, "it is the run to go on with"


NO_TORCH = "raise SystemExit('torch is imported now')\n"


@pytest.mark.parametrize(
    ("line", "first", "plan"),
    [
        (
            "clusterq_gen train --arch resnet20_cifar10 --preset quick --time-budget 30m",
            "resnet20_cifar10 to out; loading torch",
            [
                "method: clusterq, preset quick; student w4a4",
                "steps: 16 epochs x 50, 4 epochs of warm-up; batch 100",
                "images: 128 of each class for training, at most 2,560 in all (one of each at least); a tenth as many held out; 50 steps of refinement each",
                "phases: generator (generator.safetensors), refinement, shards (shards/), report (report.html)",
                "time budget: 30 min 0 s; steps and images become fewer where they do not fit",
            ],
        ),
        ("clusterq_gen train --arch resnet20_cifar10 --dry-run", "resnet20_cifar10 to out; loading torch", []),
        (
            "clusterq_finetune quantize --arch resnet18 --out m.onnx",
            "resnet18, recipe fast, for ort-cpu, to m.onnx; loading torch",
            ["stages: set of images, fine-tuning, export, benchmark, report; in m-work; their times follow"],
        ),
        ("clusterq_finetune --shards s3://name:word@host/set", "a student from s3://host/set; loading torch", []),
    ],
)
def test_the_first_lines_come_before_torch(line: str, first: str, plan: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(NO_TORCH)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", *line.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    assert lines[0].startswith(first)
    assert lines[1:] == [*plan, "torch is imported now"]
