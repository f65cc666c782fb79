"""Two programs on one folder: the second is refused. Whatever ends a program, its folder is free and its processes are gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.run.folder_lock import only_program
from tests import preloaded
from tests.conftest import TINY, Cli, DigitsTeacher

# A process that a shell starts in the background ignores Ctrl-C, and so do its children: the holder of a folder does not.
HOLDER = """
import signal, sys, time
from pathlib import Path
from clusterq_common.run.folder_lock import only_program
from tests import preloaded
signal.signal(signal.SIGINT, signal.default_int_handler)
with only_program(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process of its own that has the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], env=preloaded.plain_environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_folder_is_free_when_its_program_has_ended(end: signal.Signals, tmp_path: Path) -> None:
    process = holder(tmp_path / "out")
    with pytest.raises(ClusterqError, match="another program is writing to"), only_program(tmp_path / "out"):
        pass
    process.send_signal(end)
    process.communicate()
    with only_program(tmp_path / "out"):
        assert not list((tmp_path / "out").iterdir()), "nothing lies in it"


def test_what_was_made_and_stays_empty_is_removed(tmp_path: Path) -> None:
    with only_program(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    with only_program(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir(), "it was there before"


def test_a_forked_process_does_not_keep_the_folder(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from clusterq_common.run.folder_lock import only_program
with only_program(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    time.sleep(0.2)
    os._exit(0)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "out")], env=preloaded.plain_environment(), start_new_session=True
    )
    try:
        process.wait(60)
        with only_program(tmp_path / "out"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_every_command_that_writes_a_folder(
    gen: Cli, finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path
) -> None:
    tuning = ["--bits", "w4a4", "--epochs", 0, "--no-report"]
    assert finetune("--shards", digits_run, *tuning, "--out", tmp_path / "tuned").code == 0
    out = tmp_path / "out"
    process = holder(out)
    try:
        for done in (
            gen("train", *digits_teacher.flags, *TINY, "--out", out),
            gen("train", *digits_teacher.flags, *TINY, "--out", out, "--resume"),
            gen("train", *digits_teacher.flags, *TINY, "--out", out, "--overwrite"),
            gen("emit", "--run", digits_run, "--per-class", 2, "--out", out),
            finetune("--shards", digits_run, *tuning, "--out", out),
            finetune("reproduce", tmp_path / "tuned", "--out", out, "--no-report"),
            finetune("shards", "subset", digits_run, "--out", out),
            finetune("shards", "merge", digits_run, digits_run, "--drop-duplicates", "--out", out),
            finetune("shards", "repair", digits_run, "--out", out),
        ):
            assert done.code == 2
            assert f"another program is writing to {out}" in done.err
            assert not list(out.iterdir())
    finally:
        process.kill()
        process.communicate()
    assert finetune("shards", "subset", digits_run, "--out", out).code == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of a job through /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_encoders_end_with_the_program(end: signal.Signals, digits_run: Path, tmp_path: Path) -> None:
    words = ["emit", "--run", digits_run, "--per-class", 3000, "--workers", 1, "--out", tmp_path / "out", "--no-report"]
    program = [sys.executable, "-m", "clusterq_gen", *(str(word) for word in words)]
    with (tmp_path / "messages").open("w") as messages:
        process = subprocess.Popen(program, env=preloaded.plain_environment(), stdout=messages, stderr=messages)
        deadline = time.monotonic() + 120
        while not (encoders := children(process.pid)) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        assert encoders, (tmp_path / "messages").read_text()
        while not list((tmp_path / "out").glob("*.partial")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(end)
        process.wait(60)
    deadline = time.monotonic() + 30
    while (left := [pid for pid in encoders if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
