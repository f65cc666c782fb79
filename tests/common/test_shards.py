"""Shards: what is written is read, by clusterq and by webdataset; what is unfinished or damaged is refused."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from clusterq_common import files
from clusterq_common.errors import ClusterqError
from clusterq_common.files import sha256_file
from clusterq_common.images import png
from clusterq_common.shards import index, split_reader
from clusterq_common.shards.digest import sample_digest
from clusterq_common.shards.manifest import Manifest, Split, read_manifest, set_digest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.sample import Sample
from clusterq_common.shards.write import shard_name, write_shard
from tests.common.shard_samples import samples, write_set
from tests.conftest import ROOT


@pytest.mark.parametrize("logits", [True, False])
def test_what_is_written_is_read(tmp_path: Path, logits: bool) -> None:
    made = write_set(tmp_path, logits=logits)
    split = ShardSet.open(tmp_path).split("train")
    assert [split.key(n) for n in range(len(split))] == [f"{n:08d}" for n in range(12)]
    assert [split.shard(n) for n in (0, 5, 11)] == [f"synth-train-{n:06d}.tar" for n in range(3)]
    for number, sample in enumerate(made):
        pixels, label, values = split.read(number)
        np.testing.assert_array_equal(png.encode(pixels), sample.png)
        assert label == split.label(number) == sample.label
        again = split.read_sample(number)
        assert (again.png, again.content, again.attempt) == (sample.png, sample.content, sample.attempt)
        assert again.teacher_confidence == pytest.approx(sample.teacher_confidence)
        if sample.logits is None:
            assert values is None
        else:
            np.testing.assert_array_equal(values, sample.logits)
    assert not list(tmp_path.glob("*.partial"))


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_set(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert sha256_file(file) == sha256_file(tmp_path / "b" / file.name), file.name


def test_webdataset_itself_reads_them(tmp_path: Path) -> None:
    made = write_set(tmp_path)
    urls = sorted(str(path) for path in tmp_path.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [int(sample["cls"]) for sample in samples] == [sample.label for sample in made]
    assert samples[3]["png"] == made[3].png
    assert json.loads(samples[3]["json"])["teacher_top1"] == 0


def test_indexes_for_other_tools(tmp_path: Path) -> None:
    write_set(tmp_path)
    info = json.loads((tmp_path / "_info.json").read_text())
    assert info["splits"]["train"]["shard_lengths"] == [5, 5, 2]
    wids = json.loads((tmp_path / "wids-train.json").read_text())
    assert sum(shard["nsamples"] for shard in wids["shardlist"]) == 12
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n")
    assert "synth-train-*.tar" in card.split("---")[1]


def test_a_writer_that_fails_leaves_no_half_shard(tmp_path: Path) -> None:
    def failing() -> Iterator[Sample]:
        yield from samples(2)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        write_shard(tmp_path, "synth-train-000000.tar", failing(), start_key=0, num_classes=3)
    assert not list(tmp_path.iterdir())


def test_no_samples_no_file(tmp_path: Path) -> None:
    written = write_shard(tmp_path, "synth-train-000000.tar", [], start_key=0, num_classes=3)
    assert written.shards == []
    assert not list(tmp_path.iterdir())


def test_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "publish", full)
    with pytest.raises(ClusterqError, match="disk is full"):
        write_shard(tmp_path, "synth-train-000000.tar", samples(1), start_key=0, num_classes=3)
    assert not list(tmp_path.iterdir())


def contents(shards: ShardSet) -> list[bytes]:
    split = shards.split("train")
    return [split.read_sample(number).content for number in range(len(split))]


def test_run_folder_and_bare_folder_are_the_same_set(tmp_path: Path) -> None:
    write_set(tmp_path / "run" / "shards")
    assert contents(ShardSet.open(tmp_path / "run")) == contents(ShardSet.open(tmp_path / "run" / "shards"))


def test_set_digest_is_of_labels_and_pixels_not_of_files_or_encodings(tmp_path: Path) -> None:
    write_set(tmp_path / "a")
    digest = read_manifest(tmp_path / "a").digest
    # The same pixels, encoded in another way.
    made = [replace(sample, png=recompressed(sample.png)) for sample in samples(12)]
    assert made[0].png != samples(1)[0].png
    parts = [
        write_shard(tmp_path / "b", shard_name("train", 9 - n), made[5 * n : 5 * n + 5], start_key=5 * n, num_classes=3)
        for n in range(3)
    ]
    shards = [shard for part in reversed(parts) for shard in part.shards]
    assert set_digest({"train": Split(samples=12, per_class=[4, 4, 4], shards=shards)}) == digest
    assert set_digest({"heldout": Split(samples=12, per_class=[4, 4, 4], shards=shards)}) != digest
    relabelled = [
        replace(sample, content=sample_digest(2 - sample.label, png.decode(sample.png, (8, 8), 1))) for sample in made[:5]
    ]
    other = write_shard(tmp_path / "c", shard_name("train", 0), relabelled, start_key=0, num_classes=3)
    assert other.shards[0].content != parts[0].shards[0].content


def recompressed(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def test_index_comes_from_the_cache_and_only_if_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERQ_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "set")
    first = contents(ShardSet.open(tmp_path / "set"))
    assert len(list((tmp_path / "cache" / "headers").iterdir())) == 3

    def no_second_time(*_: object) -> None:
        raise AssertionError("indexed again")

    monkeypatch.setattr(index, "index_tar", no_second_time)
    assert contents(ShardSet.open(tmp_path / "set")) == first
    monkeypatch.undo()
    monkeypatch.setenv("CLUSTERQ_CACHE", str(tmp_path / "cache"))
    for number, kept in enumerate(sorted((tmp_path / "cache" / "headers").iterdir())):
        wrong = [b"junk", b"", np.load(kept).tobytes()][number]
        kept.write_bytes(wrong)
    assert contents(ShardSet.open(tmp_path / "set")) == first


def test_a_shard_changed_after_it_was_verified_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERQ_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "set")
    hashed = []
    monkeypatch.setattr(index, "sha256_file", lambda path: (hashed.append(path), files.sha256_file(path))[1])
    ShardSet.open(tmp_path / "set")
    ShardSet.open(tmp_path / "set")
    assert len(hashed) == 3, "the second opening trusts the unchanged files"
    path = tmp_path / "set" / "synth-train-000001.tar"
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(ClusterqError, match="was changed"):
        ShardSet.open(tmp_path / "set")


def test_a_cache_that_cannot_be_written_is_only_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLUSTERQ_CACHE", str(tmp_path / "file"))
    write_set(tmp_path / "set")
    assert len(contents(ShardSet.open(tmp_path / "set"))) == 12
    assert "CLUSTERQ_CACHE" in capsys.readouterr().err


def test_a_reader_keeps_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_reader, "LARGEST_OPEN", 2)
    made = write_set(tmp_path)
    split = ShardSet.open(tmp_path).split("train")
    for number in (0, 6, 11, 1, 7, 0):
        assert split.read_sample(number).png == made[number].png
        assert len(split._open) <= 2


def test_published_schema_is_the_models() -> None:
    published = json.loads((ROOT / "docs" / "shard-manifest.schema.json").read_text())
    assert published == Manifest.model_json_schema(), "run: python tools/write_schema.py"
