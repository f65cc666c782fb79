"""Writing into a folder that someone else prepared: no link in it is followed, and no leftover is in the way."""

import json
from pathlib import Path

import pytest
import torch

from clusterq_common import files
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_file, atomic_write, final_name, make_folder, open_to_append
from clusterq_common.run.checkpoint import load_checkpoint, save_checkpoint
from clusterq_common.run.metrics import MetricsLog
from clusterq_common.run.run_folder import OWN_FOLDERS, open_run_folder, refuse_links
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.verify import verify_set
from tests.common.shard_samples import write_set


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user that no writer may touch."""
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.mark.parametrize("planted", ["file.partial", "file"])
def test_no_link_beside_or_in_place_of_a_file_is_followed(folder: Path, victim: Path, planted: str) -> None:
    (folder / planted).symlink_to(victim)
    atomic_write(folder / "file", "new")
    assert victim.read_text() == "precious"
    assert (folder / "file").read_text() == "new"
    assert not (folder / "file").is_symlink()


def test_the_temporary_name_is_made_exclusively(folder: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "0" * 2 * count)
    (folder / f"file.{'0' * 16}.partial").symlink_to(victim)
    with pytest.raises(FileExistsError):
        atomic_write(folder / "file", "new")
    assert victim.read_text() == "precious"
    assert not (folder / "file").exists()


def test_leftovers_of_killed_writers_block_nobody(folder: Path) -> None:
    for name in ("file.partial", "file.0123456789abcdef.partial"):
        (folder / name).mkdir()
        assert final_name(name) == "file"
    atomic_write(folder / "file", "new")
    assert (folder / "file").read_text() == "new"


def test_a_file_gets_the_mode_that_the_umask_leaves(folder: Path) -> None:
    (folder / "plain").write_text("")
    atomic_write(folder / "file", "new")
    assert (folder / "file").stat().st_mode == (folder / "plain").stat().st_mode


def test_two_writers_of_one_file_do_not_meet(folder: Path) -> None:
    with atomic_file(folder / "file") as first:
        first.write(b"one")
        with atomic_file(folder / "file") as other:
            other.write(b"other")
        assert (folder / "file").read_text() == "other"
    assert (folder / "file").read_text() == "one"
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_metrics_and_checkpoints_go_through_no_link(folder: Path, victim: Path) -> None:
    (folder / "metrics.jsonl.partial").symlink_to(victim)
    log = MetricsLog(folder / "metrics.jsonl")
    log.append([{"step": 0}])
    assert json.loads((folder / "metrics.jsonl").read_text()) == {"step": 0}
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        log.append([{"step": 1}])
    with pytest.raises(OSError, match="symbolic links"):
        open_to_append(folder / "metrics.jsonl")
    (folder / "last.pt.partial").symlink_to(victim)
    save_checkpoint(folder / "last.pt", {"step": 3})
    assert load_checkpoint(folder / "last.pt", torch.device("cpu")) == {"step": 3}
    (folder / "checkpoints").symlink_to(victim.parent)
    with pytest.raises(ClusterqError, match="is a link"):
        save_checkpoint(folder / "checkpoints" / "last.pt", {"step": 3})
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", OWN_FOLDERS)
def test_a_received_run_with_a_link_for_a_folder_is_not_resumed(folder: Path, victim: Path, name: str) -> None:
    (folder / "config.yaml").write_text("x")
    (folder / name).symlink_to(victim.parent)
    with pytest.raises(ClusterqError, match=rf"^resume: .*{name} is a link"):
        open_run_folder(folder, resume=True)
    with pytest.raises(ClusterqError, match=rf"^run: .*{name} is a link"):
        refuse_links(folder, "run")
    with pytest.raises(ClusterqError, match="is a link"):
        make_folder(folder / name)
    open_run_folder(folder, overwrite=True)
    assert victim.read_text() == "precious"
    assert not list(folder.iterdir())


def test_leftovers_of_a_run_are_removed_when_it_goes_on(folder: Path, victim: Path) -> None:
    (folder / "config.yaml").write_text("x")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt.0123456789abcdef.partial").write_text("half")
    (folder / "student.safetensors.partial").symlink_to(victim)
    (folder / "mine.partial").write_text("kept")
    assert open_run_folder(folder, resume=True)
    assert sorted(path.name for path in folder.rglob("*")) == ["checkpoints", "config.yaml", "mine.partial"]
    assert victim.read_text() == "precious"


def test_shards_go_through_no_link_and_leftovers_are_reported(folder: Path, victim: Path) -> None:
    for name in ("synth-train-000000.tar", "manifest.json", "README.md"):
        (folder / f"{name}.partial").symlink_to(victim)
        (folder / name).symlink_to(victim)
    write_set(folder)
    (folder / "synth-train-000009.tar.0123456789abcdef.partial").write_text("half")
    assert victim.read_text() == "precious"
    assert not any((folder / name).is_symlink() for name in ("synth-train-000000.tar", "manifest.json", "README.md"))
    problems = [problem.file for problem in verify_set(folder, read_manifest(folder))]
    assert problems == ["synth-train-000000.tar.partial", "synth-train-000009.tar.0123456789abcdef.partial"]
