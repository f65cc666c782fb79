"""tools/gpu/prove.py: a stage that fails or hangs costs the others nothing, and a rehearsal runs everything."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests import preloaded
from tests.tools.conftest import GPU


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of stages' figures."""
    monkeypatch.syspath_prepend(GPU)
    return importlib.import_module("record")


@pytest.fixture
def prove(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the command."""
    monkeypatch.syspath_prepend(GPU)
    return importlib.import_module("prove")


def test_a_part_that_fails_is_kept_and_the_next_is_measured(record: ModuleType, tmp_path: Path) -> None:
    kept = record.Record(tmp_path / "stage.json", 100.0)

    def broken() -> None:
        kept.add("before it broke", 1.5, "ms")
        raise RuntimeError("no kernel image")

    kept.part("broken", broken)
    kept.part("long", lambda: kept.add("never", 1), needs=1000)
    kept.part("whole", lambda: kept.add("works", True))
    on_disk = json.loads((tmp_path / "stage.json").read_text())
    assert [figure["name"] for figure in on_disk["figures"]] == ["before it broke", "works"]
    assert on_disk["failures"]["broken"] == "RuntimeError: no kernel image"
    assert on_disk["failures"]["long"].startswith("not begun: it needs 1000 s")
    assert not on_disk["finished"]
    kept.finish()
    assert json.loads((tmp_path / "stage.json").read_text())["finished"]


def test_a_stage_that_hangs_is_ended_with_all_it_started(
    prove: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    script = tmp_path / "prove.py"
    (tmp_path / "run_stage.py").write_text(
        "import json, subprocess, sys, time\n"
        "json.dump({'figures': [{'name': 'a', 'value': 1, 'unit': '', 'note': ''}], 'failures': {}}, open(sys.argv[3] + '/steps.json', 'w'))\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(prove, "__file__", str(script))
    monkeypatch.setattr(prove, "GRACE", 0.0)
    begin = time.monotonic()
    outcome = prove._stage("steps", tmp_path, out, tmp_path, 3.0, rehearse=False)
    assert time.monotonic() - begin < 20
    assert outcome["status"] == "ran over its time and was ended"
    assert [figure["name"] for figure in outcome["figures"]] == ["a"], "what it had found is kept"
    child = int((out / "proof.log").read_text().split()[-1])
    for _ in range(50):  # a signal takes a moment
        if not _runs(child):
            break
        time.sleep(0.1)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_table_shows_figures_and_failures(prove: ModuleType) -> None:
    machine = {"device": "a GPU", "commit": "abc", "versions": {"torch": "2.11", "python": "3.12"}}
    figures = [
        {"name": "a step", "value": 12.3456, "unit": "ms", "note": "warm"},
        {"name": "same", "value": False, "unit": "", "note": ""},
    ]
    stages = {"steps": {"status": "done", "wall_seconds": 3.0, "figures": figures, "failures": {"compiled": "no compiler"}}}
    table = prove.markdown({"stages": stages, "machine": machine, "seconds": 3.0, "rehearsal": True})
    assert "| a step | 12.35 ms | warm |" in table
    assert "| same | NO  |  |" in table
    assert "- **compiled**: no compiler" in table
    assert "no figure here means anything" in table


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stages", "sound,stepz"], "--stages: 'stepz' is unknown, expected some of sound, steps, paper-cifar, imagenet."),
        ([], "--pack: "),
    ],
)
def test_mistakes_are_sentences(flags: list[str], words: str, tmp_path: Path) -> None:
    command = [sys.executable, GPU / "prove.py", "--pack", tmp_path / "none", "--out", tmp_path / "out", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=preloaded.environment(), check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()
