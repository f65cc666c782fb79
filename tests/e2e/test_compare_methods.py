"""tools/compare_methods.py on the digits, and the arithmetic of its intervals."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tools.compare.paired import Repeats, paired

from tests import preloaded
from tests.conftest import ROOT, TINY, Cli, DigitsTeacher
from tests.e2e.page import UNBROKEN


def test_paired_intervals() -> None:
    first = np.array([[True, True, False, True], [True, False, False, True]])
    second = np.array([[True, False, False, False], [True, False, True, False]])
    apart = np.array([0.0, 50.0, -50.0, 100.0])
    interval = paired(first, second)
    assert interval.mean == pytest.approx(apart.mean()) == pytest.approx(100 * (first.mean() - second.mean()))
    half = 1.959964 * apart.std(ddof=1) / 2
    assert (interval.low, interval.high) == pytest.approx((interval.mean - half, interval.mean + half))
    same = paired(first, first)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_halves_are_every_second_file_of_each_class(tmp_path: Path) -> None:
    names = np.array(["a/1", "a/2", "a/3", "b/1", "b/9"])
    right = np.array([1, 0, 1, 1, 0], dtype=np.int32)
    np.savez(tmp_path / "p.npz", name=names, label=np.ones(5, np.int32), teacher=right, calibrated=right, student=right)
    whole = Repeats.read([tmp_path / "p.npz"])
    assert whole.only(lambda _, place: place % 2 == 0).names == ["a/1", "a/3", "b/1"]
    odd = whole.only(lambda _, place: place % 2 == 1)
    assert odd.names == ["a/2", "b/9"]
    assert odd.top1("student") == [0.0]
    np.savez(tmp_path / "q.npz", name=names[:4], label=right[:4], teacher=right[:4], calibrated=right[:4], student=right[:4])
    with pytest.raises(ValueError, match="other images"):
        Repeats.read([tmp_path / "p.npz", tmp_path / "q.npz"])


def test_the_tool_runs_and_goes_on(digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    out = tmp_path / "compare"
    # A finished set of one method is used as it is: as after an interruption.
    shutil.copytree(digits_run, out / "sets" / "clusterq-0")
    _, arch, _, weights, *rest = digits_teacher.flags
    flags = ["--arch", arch, "--weights", weights, "--teacher-flags", " ".join(rest), "--out", out, "--threads", 1]
    flags += ["--methods", "clusterq,noise", "--bits", "w3a3", "--recipes", "calibrate,fast", "--seeds", "0", "--images", 12]
    flags += [
        "--finetune-flags",
        "--batch-size 32 --steps-per-epoch 0 --calibration-images 64 --reconstruct-steps 10 --no-report",
        "--train-flags",
        " ".join([*TINY, "--no-report"]),
    ]
    flags += ["--real-upper-bound", digits_teacher.val, "--val", digits_teacher.val]
    command = [sys.executable, ROOT / "tools" / "compare_methods.py", *flags]

    def run(*more: object, code: int = 0) -> str:
        words = [str(word) for word in (*command, *more)]
        done = subprocess.run(words, capture_output=True, text=True, env=preloaded.environment(), check=False)
        assert done.returncode == code, done.stderr
        return done.stderr

    assert run().count("== clusterq_finetune") == 6
    assert "== clusterq" not in run(), "what is finished is kept"
    rows = json.loads((out / "table.json").read_text())
    assert [(row["set"], row["recipe"]) for row in rows] == [
        (method, recipe) for method in ("clusterq", "noise", "real") for recipe in ("calibrate", "fast")
    ]
    by_name = {(row["set"], row["recipe"]): row for row in rows}
    assert by_name["clusterq", "calibrate"]["student"] == by_name["clusterq", "calibrate"]["calibrated"]
    assert float(by_name["noise", "fast"]["student"]) < float(by_name["real", "fast"]["student"])
    assert by_name["clusterq", "fast"]["first set minus this"] == "0.00 [0.00, 0.00]"
    # The table's minutes have one decimal, which the fastest students round to nothing.
    cost = json.loads((out / "students" / "clusterq-w3a3-all-fast-0" / "cost.json").read_text())
    assert cost["cpu_seconds"] > 0
    assert float(by_name["clusterq", "fast"]["student, CPU min"]) == round(cost["cpu_seconds"] / 60, 1)
    assert len((out / "table.md").read_text().splitlines()) == 2 + len(rows)
    page = UNBROKEN.sub(r"\1", (out / "report.html").read_text())
    assert "6 ways to a low-bit student." in page
    assert "tools/compare_methods.py --arch" in page, "the command that makes it again"

    # Nobody stored the images that the student beside the generator has seen; its bits are the generator's.
    only = ("--methods", "clusterq", "--recipes", "in-loop")
    assert "at w4a4 in all layers, expected of w3a3" in run(*only, code=2)
    run(*only, "--bits", "w4a4")
    row = json.loads((out / "table.json").read_text())[0]
    assert (row["recipe"], row["bits"], row["images"], row["calibrated"]) == ("in-loop", "w4a4", 0, "")
    assert 20 < float(row["student"]) <= float(row["teacher"]) + 5


def test_sets_that_differ_in_what_is_emitted_share_a_generator(
    digits_run: Path, digits_teacher: DigitsTeacher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    runs = importlib.import_module("compare.runs")
    for name, value in preloaded.environment().items():
        monkeypatch.setenv(name, value)
    shutil.copytree(digits_run, tmp_path / "sets" / "first-0")
    few = ["--per-class", "3", "--heldout-per-class", "0"]
    comparison = runs.Comparison(
        out=tmp_path,
        val=digits_teacher.val,
        teacher=[str(flag) for flag in digits_teacher.flags],
        sets={"first": [], "few": few},
        seeds=[0],
        finetune=["--calibration-images", "30", "--threads", "1"],
        one_generator=True,
    )
    first, other = comparison.table([runs.Setting(name, "w3a3", "all", "calibrate") for name in ("first", "few")])
    assert other["images"] == 30 != first["images"]
    assert json.loads((tmp_path / "sets" / "few-0" / "cost.json").read_text())["cpu_seconds"] > 0
    assert not (tmp_path / "sets" / "few-0" / "generator.safetensors").exists()


def test_every_analysis_is_one_of_settings_that_exist(
    digits_teacher: DigitsTeacher, gen: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    analyses = importlib.import_module("analyses").ANALYSES
    assert set(analyses) == {"de-and-ema", "ema-rate", "diversity", "images", "batch-classes", "stored", "adadfq"}
    for name, sets in analyses.items():
        plans = set()
        for flags in sets.values():
            small = ("--preset", "quick", "--width", 8)  # a dry run measures a few steps
            done = gen("train", *digits_teacher.flags, *small, *flags, "--out", tmp_path / "no", "--dry-run")
            assert done.code == 0, (name, flags, done.err)
            plans.add(tuple(flags))
        assert len(plans) == len(sets), name
    assert not (tmp_path / "no").exists()
