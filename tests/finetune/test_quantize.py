"""`clusterq-finetune quantize`: one command from a classifier to a file, its plan, and what an interruption leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clusterq_common.errors import ClusterqError
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.run.child_process import part_environment, run_program
from clusterq_common.run.folder_lock import only_program
from clusterq_common.run.run_folder import CONFIG, SHARDS
from clusterq_common.shards.manifest import MANIFEST
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune.config import RecipeConfig
from clusterq_finetune.prepare import Request
from clusterq_finetune.quantize import announce, estimate, generate
from clusterq_finetune.quantize import command as stages
from clusterq_finetune.quantize.command import plan_of
from clusterq_finetune.quantize.generate import SetPlan
from clusterq_finetune.quantize.plan import PLAN, SET, STUDENT, set_flags_of
from tests import preloaded
from tests.conftest import Cli, DigitsTeacher

SMALL_SET = "--images 80 --bank-steps 20 --batch-size 40 --no-report"
# A program that waits, with the file that says that it runs.
WAITING = "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\ntime.sleep(60)\n"


def run_preloaded(
    module: str,
    arguments: Sequence[str],
    on_line: Callable[[str], object] | None = None,
    message: Mapping[str, Any] | None = None,
) -> int:
    """`run_program` in a fork of a process that has imported torch."""
    stdout = None if on_line is None else subprocess.PIPE
    command = [sys.executable, "-m", module, *arguments]
    environment = {**preloaded.environment(), **part_environment(message or {})}
    done = subprocess.run(command, env=environment, check=False, stdout=stdout, text=True)
    for line in (done.stdout or "").splitlines():
        assert on_line is not None
        on_line(line)
    return done.returncode


@pytest.mark.long
def test_from_a_classifier_to_a_file(
    digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages; the same command again makes nothing anew; another plan does not go on with them."""
    monkeypatch.setattr(generate, "run_program", run_preloaded)
    out, work, val = tmp_path / "model.onnx", tmp_path / "work", tmp_path / "val"
    for path in sorted(digits_teacher.val.rglob("*.png"))[::5]:  # ten evaluations, each of all images
        (val / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, val / path.parent.name)
    flags = ["--bits", "w8a8", "--recipe", "calibrated", "--set-flags", SMALL_SET, "--threads", 1, "--val", val]
    flags += ["--time-budget", "20m"]
    command = ["quantize", *digits_teacher.flags, *flags, "--out", out, "--work", work]
    done = finetune(*command, "--dry-run")
    assert done.code == 0, done.err
    assert "to w8a8 for ort-cpu (checked with" in done.out.splitlines()[0]
    stages_told = "set of images .+, fine-tuning .+, export and benchmark .+"
    total = rf"in all: planned to end within 20 min 0 s of the start \(a rough estimate from the classifier's pace on cpu: {stages_told}\)"
    assert re.fullmatch(total, done.out.splitlines()[1]), done.out
    assert re.search(r"^   time: about ", done.out, re.MULTILINE), "the set's own plan"
    assert not work.exists()
    images = re.escape(f"{len(list(val.rglob('*.png'))):,} real images in {val}") + r", (a few|\d+ to \d+) \w+"
    assert re.search(rf"^   then teacher and student on {images}$", done.out, re.MULTILINE), done.out
    assert re.search(rf"^4. benchmark: .* both files on {images}$", done.out, re.MULTILINE), done.out
    done = finetune(*command, "--json")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[3].startswith("1. set of images: clusterq-gen train")
    assert lines[3].endswith(" --time-budget 720s --out " + str(work / SET)), lines[3]
    (fine_tuning,) = [line for line in lines if line.startswith("2. fine-tuning: recipe calibrated, ")]
    assert fine_tuning.endswith(" on cpu")
    assert "made for ort-cpu (checked with onnxruntime 1.31.1 on AVX512-VNNI)" in lines, "what the export did is said, too"
    assert [line for line in lines if line.startswith("against the student on 16 images of random pixels: same class on ")]
    assert "fine-tun" in done.err or "calibrat" in done.err
    # The next step is the command's own, and so is the set.
    assert not [line for line in done.err.splitlines() if line.startswith(("next:", "Set:"))], done.err
    result = json.loads(lines[-1])
    about = OnnxModel(out).description
    assert (about.bits, about.target.split()[0], about.batchnorm_kept) == ("w8a8", "ort-cpu", ())
    assert result["benchmark"]["real_images"]["file"]["agreement"] > 80
    assert "The exported file" in Path(result["report"]).read_text()
    before = {path: path.stat().st_mtime_ns for path in (work / SET / SHARDS / MANIFEST, work / STUDENT / "result.json", out)}
    done = finetune(*command, "--quiet")
    assert done.code == 0, done.err
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for changed, words in (
        (["--bits", "w4a8"], "the stages in"),
        (["--work", tmp_path], "is not empty and holds no quantize.yaml"),
        (["--work", tmp_path / "other"], "exists, expected a new file"),
        (["--preset", "quick"], "--preset: --recipe calibrated"),
        (["--target", "executorch"], "takes no ONNX file"),
        (["--val", tmp_path / "nowhere"], "--val"),
        (["--out", tmp_path / "model.bin"], "ends in '.bin'"),
    ):
        done = finetune(*command, *changed)
        assert (done.code, words in " ".join(done.err.split())) == (2, True), done.err


def test_a_plan_is_the_command_line_with_the_targets_choices(tmp_path: Path) -> None:
    values = {"target": "tensorrt", "bits": "w4a8", "recipe": "fast", "preset": "quick"}
    plan = plan_of({"teacher": {"arch": "resnet18", "mean": "0.5,0.5,0.5"}, "runtime": {"seed": 3}}, **values)
    assert plan.quant == {"quantizer": "symmetric", "signed": True, "narrow_weights": True, "branch_outputs": True}
    assert plan.set_command(tmp_path) == [
        *("train", "--arch", "resnet18", "--mean", "0.5,0.5,0.5", "--seed", "3", "--preset", "quick", "--bits", "w4a8"),
        *("--out", str(tmp_path / SET)),
    ]
    with pytest.raises(ClusterqError, match="activations of 4 bits do not run on NVIDIA TensorRT"):
        plan_of({"teacher": {"arch": "resnet18"}}, **{**values, "bits": "w4a4"})
    assert not plan.is_started(tmp_path)
    plan.to_yaml(tmp_path / PLAN)
    assert plan.is_started(tmp_path)
    with pytest.raises(ClusterqError, match="made with preset quick, this command has auto") as refused:
        plan.model_copy(update={"preset": "auto"}).is_started(tmp_path)
    assert "To use its images" not in str(refused.value), "there are none yet"
    (tmp_path / SET).mkdir()
    with pytest.raises(ClusterqError, match=r"To use its images: --shards .*set and another --work"):
        plan.model_copy(update={"bits": "w8a8"}).is_started(tmp_path)


def test_a_file_is_timed_in_its_own_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed_in(target: str) -> str:
        return plan_of({"teacher": {"arch": "resnet18"}}, target=target, bits="w8a8", recipe="fast", preset="quick").timed_in

    monkeypatch.setattr("clusterq_finetune.quantize.plan.find_spec", lambda name: name)
    assert [timed_in(target) for target in ("ort-cpu", "openvino", "tensorrt")] == ["onnxruntime", "openvino", "onnxruntime"]
    monkeypatch.setattr("clusterq_finetune.quantize.plan.find_spec", lambda name: None)
    assert timed_in("openvino") == "onnxruntime"


def test_shares_of_a_time_budget(tmp_path: Path) -> None:
    values = {"target": "ort-cpu", "bits": "w8a8", "recipe": "fast", "preset": "quick"}
    plan = plan_of({"teacher": {"arch": "resnet18"}}, **values, time_budget=1000.0)
    assert plan.set_command(tmp_path)[-4:-2] == ["--time-budget", "600s"]
    # What the set left over is the student's, who always has a fifth.
    assert [plan.student_seconds(elapsed) for elapsed in (0, 500, 650, 850)] == [900, 400, 250, 200]
    unlimited = plan_of({"teacher": {"arch": "resnet18"}}, **values)
    assert unlimited.student_seconds(0) is None
    assert "--time-budget" not in unlimited.set_command(tmp_path)
    with pytest.raises(ClusterqError, match="--set-flags: --time-budget is set by quantize itself"):
        set_flags_of("--time-budget 5m")


def test_a_set_that_fails_ends_the_command(digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    done = finetune("quantize", *digits_teacher.flags, "--set-flags", "--no-such-flag", "--out", out)
    assert done.code == 2
    assert not out.exists()
    assert not (tmp_path / "model-work" / SET / CONFIG).exists()


def test_two_commands_on_one_work_folder(digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path) -> None:
    with only_program(tmp_path / "work"):
        done = finetune("quantize", *digits_teacher.flags, "--work", tmp_path / "work", "--out", tmp_path / "model.onnx")
        assert done.code == 2
        assert "--work: another program is writing to" in done.err
        assert not list((tmp_path / "work").iterdir())


def test_flags_of_the_set_that_are_refused(finetune: Cli, tmp_path: Path) -> None:
    """A quote that does not end, and flags whose values are the command's own."""
    for given, words in (
        ("--per-class 64 --dry-run", "--set-flags: --dry-run is set by quantize itself"),
        ("--arch=resnet20_cifar10", "--set-flags: --arch is set by quantize itself"),
        ("--out elsewhere", "--set-flags: --out is set by quantize itself"),
    ):
        with pytest.raises(ClusterqError, match=words):
            set_flags_of(given)
    done = finetune("quantize", "--arch", "resnet18", "--set-flags", "--per-class '64", "--out", tmp_path / "model.onnx")
    assert (done.code, "has a quote that does not end" in " ".join(done.err.split())) == (2, True), done.err
    assert "Traceback" not in done.err


def test_the_time_depends_on_the_set(digits_teacher: DigitsTeacher, digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    """A set that is not there is refused at once."""
    recipe = RecipeConfig(epochs=5, batch_size=128)
    more = estimate.fine_tuning(recipe, 128_000) - estimate.fine_tuning(recipe, 0)
    assert more == 5 * (1000 - 40) * 128 * estimate.STEP
    command = ["quantize", *digits_teacher.flags, "--bits", "w8a8", "--dry-run", "--out", tmp_path / "model.onnx"]
    done = finetune(*command, "--shards", digits_run)
    assert done.code == 0, done.err
    total = r"^in all: (a few|\d+ to \d+) \w+ \(a rough estimate from the classifier's pace on cpu: fine-tuning .+, export and benchmark .+\)$"
    assert re.search(total, done.out, re.MULTILINE), done.out
    done = finetune(*command, "--shards", tmp_path / "nowhere")
    assert (done.code, "which is there" in done.out) == (2, False), done.out


def test_settings_of_the_fine_tuning_and_of_its_evaluation(
    digits_teacher: DigitsTeacher, digits_run: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits that are chosen, classes and crop reach the stages; without real images the latter two are refused, not ignored."""
    names = tmp_path / "classes.txt"
    names.write_text("".join(f"{path.name}\n" for path in sorted(digits_teacher.val.iterdir())))
    given: list[Request] = []

    def fine_tune(request: Request) -> None:
        given.append(request)
        raise ClusterqError("far enough")

    monkeypatch.setattr("clusterq_finetune.commands.finetune", fine_tune)
    monkeypatch.setattr(announce, "seconds_per_image", lambda *_: 1.0)
    command = ["quantize", *digits_teacher.flags, "--shards", digits_run, "--bits", "w4a8", "--out", tmp_path / "model.onnx"]
    chosen = ["--average-bits", 3.5, "--time-budget", "1m"]
    done = finetune(*command, *chosen, "--val", digits_teacher.val, "--classes", names, "--crop-pct", "off")
    assert "far enough" in done.err, done.err
    assert "takes longer than the share of the budget" in done.err
    assert "weights of 4 bits are stored in 8; --integers packed or --integers int4 makes the file smaller" in done.out
    assert "with the choice of bits by layer before it" in done.out
    assert "speed beside float in ONNX Runtime on the CPU, and both files" in done.out
    [request] = given
    assert request.accepted, "what is left of the budget is not refused any more"
    assert "the smallest useful fine-tuning takes about" in done.err, "but the plan has said that it is too little"
    assert (request.flags["choice"], request.flags["evaluation"]) == ({"average_bits": 3.5}, {"crop_pct": "off"})
    assert (request.val, request.classes) == (digits_teacher.val, names)
    for flag, value in (("--classes", names), ("--crop-pct", "off")):
        done = finetune(*command, flag, value, "--work", tmp_path / "new")
        assert (done.code, f"{flag}: there is no --val" in done.err) == (2, True), done.err


def test_the_program_that_makes_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is quiet where the command is, and a signal that ended it is told in a sentence."""
    called: list[list[str]] = []
    known: list[dict[str, Any]] = []

    def run(_: str, arguments: list[str], on_line: object = None, message: dict[str, Any] | None = None) -> int:
        called.append(arguments)
        known.append(message or {})
        return 0

    monkeypatch.setattr(generate, "run_program", run)
    plan = plan_of({"teacher": {"arch": "resnet18"}}, target="ort-cpu", bits="w8a8", recipe="fast", preset="quick")
    speed = {"step": 0.1, "image_step": 0.0, "candidate": 0.01, "student_share": 2.0}
    planned = announce.Stages(SetPlan([], 60.0, 512, 51, speed), student=100.0, least=10.0, evaluation=20.0, rest=30.0)
    for quiet in (True, False):
        stages._set(plan, tmp_path, planned, quiet=quiet)
    assert known[0] == {"speed": speed, "afterwards": 150.0}, "the plan's own speed, and the time of the later stages"
    assert [arguments[-1] for arguments in called] == ["--quiet", str(tmp_path / SET)]
    (tmp_path / SET).mkdir()
    (tmp_path / SET / CONFIG).touch()  # what an interruption leaves
    stages._set(plan, tmp_path, planned, quiet=False)
    assert called[-1][-1] == "--resume"
    monkeypatch.setattr(generate, "run_program", lambda *_, **__: -signal.SIGKILL)
    with pytest.raises(ClusterqError, match="clusterq-gen was ended by signal 9"):
        stages._set(plan, tmp_path, planned, quiet=False)


def test_a_set_that_was_begun_is_planned_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the set keeps its plan, which no later measurement may refuse."""
    asked: list[list[str]] = []

    def plan_set(arguments: list[str]) -> SetPlan:
        asked.append(arguments)
        return SetPlan([], 60.0, 512, 51, {})

    monkeypatch.setattr(announce, "plan_set", plan_set)
    monkeypatch.setattr(announce, "seconds_per_image", lambda *_: 0.01)
    values = {"target": "ort-cpu", "bits": "w8a8", "recipe": "fast", "preset": "quick", "time_budget": 100.0}
    plan = plan_of({"teacher": {"arch": "resnet18"}}, **values)
    teacher: Any = SimpleNamespace(config=TeacherConfig(arch="resnet18"))
    told = [announce._stages(plan, teacher, torch.device("cpu"), tmp_path, None)]
    (tmp_path / SET).mkdir()
    (tmp_path / SET / CONFIG).touch()
    told.append(announce._stages(plan, teacher, torch.device("cpu"), tmp_path, None))
    assert ["--resume" in arguments for arguments in asked] == [False, True]
    assert told[0].student == 0.9 * 100 - 60, "what the set leaves of the shares of both"
    assert told[0].least > 0


def test_a_program_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for any end of the parent; and its exit code and its Ctrl-C are the parent's."""
    (tmp_path / "waiting.py").write_text(WAITING)
    (tmp_path / "ending.py").write_text("import sys\nprint('ends')\nsys.exit(int(sys.argv[1]))\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_program("ending", ["3"]) == 3
    heard: list[str] = []
    assert (run_program("ending", ["4"], heard.append), heard) == (4, ["ends"])
    with pytest.raises(KeyboardInterrupt):
        run_program("ending", ["130"])
    running = tmp_path / "running"
    script = f"from clusterq_common.run.child_process import run_program; run_program('waiting', [{str(running)!r}])"
    paths = os.pathsep.join(path for path in sys.path if path)
    parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths})
    _wait_for(running.exists)
    (child,) = (int(process) for process in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_for(lambda: not _runs(child))


def _wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
