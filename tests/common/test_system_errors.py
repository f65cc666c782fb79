"""Refusals of the operating system: one sentence, with exit code 2."""

import errno
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clusterq_cli.main import run_guarded
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_file, atomic_write, home_folder
from clusterq_common.images import png
from clusterq_common.run.run_folder import PREDICTIONS
from clusterq_common.shards.index import cache_folder
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.spec import InputSpec
from clusterq_common.teacher.weights import weights_cache
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.evaluation.evaluate import EvaluationResult
from clusterq_finetune.evaluation.predictions import Predictions
from clusterq_finetune.evaluation.summary import summary_lines
from tests.common.shard_samples import write_set

SPEC = InputSpec(size=8, channels=3, num_classes=2, mean=(0.5,) * 3, std=(0.5,) * 3)


def said(error: Exception, capsys: pytest.CaptureFixture[str], resume: Callable[[], str] | None = None) -> str:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        run_guarded(fail, resume=resume)
    assert left.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(("Error: Access failed", "Error: Writing failed", "Error: A file has"))
    assert len(line.splitlines()) == 1
    return line


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EFBIG, "ulimit -f"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.ENOENT, "check the path"),
        (errno.ENOTDIR, "check the path"),
        (errno.EISDIR, "check the path"),
        (errno.ELOOP, "in the place of the link"),
        (errno.EACCES, "its permissions"),
        (errno.ENOSPC, "free some space"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "may be failing"),
        (errno.ETIMEDOUT, "check the network"),
    ],
)
def test_errors_of_the_system(code: int, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(OSError(code, os.strerror(code), "/a\x1b[31m/b"), capsys)
    assert advice in line
    assert os.strerror(code) in line


def test_a_full_disk_names_the_command_that_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """`emit` goes on without --resume, and most commands cannot go on at all."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard.tar")
    assert said(full, capsys).strip().endswith("free some space or choose another --out.")
    assert (
        said(full, capsys, resume=lambda: "clusterq-gen emit --run out")
        .strip()
        .endswith("go on with: clusterq-gen emit --run out")
    )


def test_a_failing_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "set")
    reader = ShardSet.open(tmp_path / "set").split("train")

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output") as caught:
        patched.setattr(os, "pread", fail)
        reader.read(0)
    assert f"at {tmp_path / 'set'}" in said(caught.value, capsys)
    with pytest.raises(OSError, match="Input/output") as caught, atomic_file(tmp_path / "name"):
        fail()
    assert f"at {tmp_path / 'name'}: Input/output error" in said(caught.value, capsys)


def test_a_system_without_pread_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has none."""
    write_set(tmp_path / "set")
    with tarfile.open(tmp_path / "real.tar", "w") as tar:
        for name, data in (("0.png", png.encode(np.full((8, 8, 3), 7, np.uint8))), ("0.cls", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    expected = [sample.png for sample in map(ShardSet.open(tmp_path / "set").split("train").read_sample, range(12))]
    monkeypatch.delattr(os, "pread")
    assert [sample.png for sample in map(ShardSet.open(tmp_path / "set").split("train").read_sample, range(12))] == expected
    pixels, label, _ = open_validation(tmp_path / "real.tar", SPEC)[0]
    assert (label, int(pixels.float().mean())) == (1, 7)


def test_names_that_are_no_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    assert "rename the file" in said(UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"), capsys)


def test_an_over_long_name_and_a_file_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for path in (tmp_path / ("x" * 300), tmp_path / "file" / "x", tmp_path / "no" / "x", tmp_path / "folder"):
        with pytest.raises(OSError) as caught:  # noqa: PT011 (of four kinds)
            atomic_write(path, "data")
        assert ".partial" not in said(caught.value, capsys)


def test_a_full_disk_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="large") as caught, atomic_file(tmp_path / "name"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert f"at {tmp_path / 'name'}: File too large" in said(caught.value, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", ["print_result('x' * 100)", "import os; os.close(2); info('x'); print_result('y')"])
def test_a_closed_output(code: str) -> None:
    script = "from clusterq_cli.main import run_guarded\nfrom clusterq_common.progress.console import *\n"
    script += f"def go():\n    {code}\nrun_guarded(go)\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CLUSTERQ_CACHE", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    for action, name in ((cache_folder, "CLUSTERQ_CACHE"), (weights_cache, "TORCH_HOME"), (lambda: home_folder("X"), "X")):
        with pytest.raises(ClusterqError, match=f"set {name} to a folder of yours"):
            action()


def test_a_cache_that_is_in_the_way_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "set")
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("CLUSTERQ_CACHE", str(tmp_path / "cache"))
    assert len(ShardSet.open(tmp_path / "set").split("train")) == 12


def test_names_of_images_never_cost_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"good\xff.png", b"bad\xff\x1b[31m.png"]
    for label in ("a", "b"):
        (tmp_path / "val" / label).mkdir(parents=True)
        for name in names:
            path = os.path.join(os.fsencode(tmp_path / "val" / label), name)
            if name.startswith(b"good"):
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(os.fsdecode(path))
            else:
                Path(os.fsdecode(path)).write_bytes(b"junk")
    images = open_validation(tmp_path / "val", SPEC)
    batch = images.collate([images.sample(index) for index in range(len(images))])
    assert len(batch.names) == len(batch.unreadable) == 2
    result = EvaluationResult(
        images=2,
        top1=50.0,
        top5=100.0,
        top1_interval=(1.0, 99.0),
        agreement=None,
        calibration_error=0.0,
        per_class=[50.0, 50.0],
        worst_pairs=[],
        images_per_second=1.0,
        decode_seconds=0.0,
        unreadable=batch.unreadable,
        balanced_accuracy=50.0,
        binary=None,
        modes={"RGB": 2},
        remarks=[],
    )
    lines = summary_lines({"student": result.model_dump()})
    assert "2 unreadable images" in lines[-1]
    lines[-1].encode()
    predictions = Predictions()
    predictions.add(batch.names, batch.labels, {"student": torch.eye(2)[batch.labels]})
    predictions.save(tmp_path / PREDICTIONS)
    assert (tmp_path / PREDICTIONS).is_file()
