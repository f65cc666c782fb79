"""Merging and cutting sets."""

import errno
import os
import signal
from pathlib import Path

import pytest

from clusterq_common import files
from clusterq_common.errors import ClusterqError
from clusterq_common.shards.derive import merge, subset
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.verify import verify_set
from tests.common.shard_samples import edit_manifest, write_set


def opened(folder: Path, seed: int = 0, *, logits: bool = True, count: int = 12) -> ShardSet:
    write_set(folder, count, seed=seed, logits=logits)
    return ShardSet.open(folder)


def test_merge_holds_all_and_says_where_it_comes_from(tmp_path: Path) -> None:
    ours, theirs = opened(tmp_path / "a", 1), opened(tmp_path / "b", 2, count=7)
    manifest = merge([ours, theirs], tmp_path / "out")
    assert verify_set(tmp_path / "out", read_manifest(tmp_path / "out")) == []
    assert manifest.splits["train"].per_class == [7, 6, 6]
    assert [parent.digest for parent in manifest.parents] == [ours.manifest.digest, theirs.manifest.digest]
    assert [parent.generation.seed for parent in manifest.parents if parent.generation] == [1, 2]
    assert manifest.mean_confidence == pytest.approx((7 * 0.5 + 6 * 0.6 + 6 * 0.7) / 19)
    split = ShardSet.open(tmp_path / "out").split("train")
    assert split.read_sample(12).png == theirs.split("train").read_sample(0).png
    assert split.read_sample(12).seed == 2
    third = opened(tmp_path / "c", 3)
    again = merge([ShardSet.open(tmp_path / "out"), third], tmp_path / "all")
    assert len(again.parents) == 4, "the merged set, its two parents, and the third"
    assert "itself derived" in (tmp_path / "all" / "README.md").read_text()


def test_logits_are_kept_only_if_all_have_them(tmp_path: Path) -> None:
    manifest = merge([opened(tmp_path / "a", 1), opened(tmp_path / "b", 2, logits=False)], tmp_path / "out")
    assert not manifest.has_logits
    assert ShardSet.open(tmp_path / "out").split("train").read(0)[2] is None


def test_the_same_image_twice_is_refused_or_dropped(tmp_path: Path) -> None:
    first = opened(tmp_path / "a", 1)
    second = opened(tmp_path / "b", 1, count=14)
    with pytest.raises(ClusterqError, match=r"00000000 of .*b.*is the same image as 00000000 of .*a"):
        merge([first, second], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest = merge([first, second], tmp_path / "out", drop_duplicates=True)
    assert manifest.splits["train"].samples == 14


def test_sets_that_do_not_belong_together(tmp_path: Path) -> None:
    ours = opened(tmp_path / "a", 1)
    write_set(tmp_path / "b", seed=2)
    edit_manifest(tmp_path / "b", lambda m: m["teacher"].update(digest="sha256:" + "7" * 64))
    with pytest.raises(ClusterqError, match="merge sets of one teacher"):
        merge([ours, ShardSet.open(tmp_path / "b")], tmp_path / "out")
    write_set(tmp_path / "c", seed=2)
    edit_manifest(tmp_path / "c", lambda m: m.update(class_names=["x", "y", "z"]))
    with pytest.raises(ClusterqError, match="name their classes differently"):
        merge([ours, ShardSet.open(tmp_path / "c")], tmp_path / "out")
    with pytest.raises(ClusterqError, match="not empty"):
        merge([ours, ours], tmp_path / "a")
    assert ShardSet.open(tmp_path / "a").manifest == ours.manifest


def test_licences_and_notes(tmp_path: Path) -> None:
    for name, seed, licence in (("a", 1, "MIT"), ("b", 2, "MIT"), ("c", 3, "CC-BY-4.0")):
        write_set(tmp_path / name, seed=seed)
        edit_manifest(tmp_path / name, lambda m, n=name, x=licence: m.update(license=x, note=f"note {n}"))
    sets = {name: ShardSet.open(tmp_path / name) for name in "abc"}
    same = merge([sets["a"], sets["b"]], tmp_path / "same")
    assert (same.license, same.note) == ("MIT", "note a\n\nnote b")
    assert merge([sets["a"], sets["c"]], tmp_path / "mixed").license is None


def test_subset(tmp_path: Path) -> None:
    source = opened(tmp_path / "a", count=30)
    manifest = subset(source, tmp_path / "out", classes=[0, 2], per_class=4)
    assert manifest.splits["train"].per_class == [4, 0, 4]
    assert manifest.derivation is not None
    assert manifest.derivation.settings == {"classes": [0, 2], "per_class": 4, "min_confidence": 0.0}
    assert verify_set(tmp_path / "out", read_manifest(tmp_path / "out")) == []
    # Samples of class c have a confidence of 0.5 + c / 10.
    assert subset(source, tmp_path / "sure", min_confidence=0.65).splits["train"].per_class == [0, 0, 10]
    with pytest.raises(ClusterqError, match="no training image is left"):
        subset(source, tmp_path / "none", min_confidence=0.99)
    with pytest.raises(ClusterqError, match="names class 3, the teacher has classes 0 to 2"):
        subset(source, tmp_path / "none", classes=[1, 3])
    assert not (tmp_path / "none").exists()


def test_an_interruption_removes_what_was_made_and_nothing_else(tmp_path: Path) -> None:
    ours = opened(tmp_path / "a", 1)
    out = tmp_path / "out"

    def interrupt(_: int) -> None:
        (out / "notes.txt").write_text("somebody's")
        (out / "synth-train-000007.tar").write_text("somebody's")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        subset(ours, out, advance=interrupt)
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "synth-train-000007.tar"]


def test_a_full_disk_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = opened(tmp_path / "a", 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "publish", full)
        with pytest.raises(ClusterqError, match=r"full, and the unfinished set was removed; .* same command again") as told:
            subset(ours, tmp_path / "out")
    assert "kept" not in str(told.value)
    assert not (tmp_path / "out").exists()
    assert subset(ours, tmp_path / "out").digest == subset(ours, tmp_path / "whole").digest


@pytest.mark.parametrize("file", ["synth-train-000000.tar", "README.md", "wids-train.json", "manifest.json"])
def test_the_same_command_again_after_a_kill(file: str, tmp_path: Path) -> None:
    ours = opened(tmp_path / "a", 1)
    out = tmp_path / "out"
    pid = os.fork()
    if not pid:  # dies as the file is about to get its name, like a process that is killed

        def die(_: Path, path: Path) -> None:
            if path.name == file:
                os.kill(os.getpid(), signal.SIGKILL)
            os.replace(_, path)

        files.publish = die
        subset(ours, out)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert list(out.iterdir())
    (out / "synth-train-000007.tar").write_text("somebody's")
    with pytest.raises(ClusterqError, match="not empty"):
        subset(ours, out)
    assert (out / "synth-train-000007.tar").read_text() == "somebody's"
    (out / "synth-train-000007.tar").unlink()
    whole = tmp_path / "whole"
    assert subset(ours, out).digest == subset(ours, whole).digest
    assert verify_set(out, read_manifest(out)) == []
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_list_that_came_with_a_folder_removes_nothing_outside(tmp_path: Path) -> None:
    ours = opened(tmp_path / "a", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "out" / "kept.txt").write_text("mine")
    names = ["../precious.txt", "kept.txt", str(tmp_path / "precious.txt"), "", "..", "../a/synth-train-000000.tar"]
    (tmp_path / "out" / ".derivation").write_text("\n".join(names))
    with pytest.raises(ClusterqError, match="not empty"):
        subset(ours, tmp_path / "out")
    assert (tmp_path / "precious.txt").read_text() == (tmp_path / "out" / "kept.txt").read_text() == "mine"
    assert (tmp_path / "a" / "synth-train-000000.tar").exists()
