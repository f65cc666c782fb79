"""Shards: what is written is read, by clusterq and by webdataset; what is unfinished or damaged is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch import Tensor

from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.files import sha256_file
from clusterq_common.shards import write
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.write import SplitWriter
from tests.common.shard_samples import samples, write_set


@pytest.mark.parametrize("logits", [True, False])
def test_what_is_written_is_read(tmp_path: Path, logits: bool) -> None:
    made = write_set(tmp_path, logits=logits)
    shards = ShardSet.open(tmp_path)
    refs = shards.samples("train")
    assert [ref.key for ref in refs] == [f"{n:08d}" for n in range(12)]
    assert {ref.shard for ref in refs} == {f"synth-train-{n:06d}.tar" for n in range(3)}
    for ref, sample in zip(refs, made, strict=True):
        pixels, label, values = shards.read(ref)
        assert torch.equal(pixels, sample.pixels)
        assert label == sample.label
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
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [int(sample["cls"]) for sample in found] == [sample.label for sample in made]
    assert found[3]["png"] == made[3].png
    assert json.loads(found[3]["json"])["teacher_top1"] == 0


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
    with pytest.raises(KeyError), SplitWriter(tmp_path, "train", samples_per_shard=5) as writer:
        for number, sample in enumerate(samples(12)):
            if number == 7:
                raise KeyError("stop")
            writer.write(sample)
    assert [path.name for path in tmp_path.iterdir()] == ["synth-train-000000.tar"]


def test_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "publish", full)
    with pytest.raises(ClusterqError, match="disk is full"), SplitWriter(tmp_path, "train") as writer:
        writer.write(samples(1)[0])


def tensor_of(shards: ShardSet) -> Tensor:
    return torch.stack([shards.read(ref)[0] for ref in shards.samples("train")])


def test_run_folder_and_bare_folder_are_the_same_set(tmp_path: Path) -> None:
    write_set(tmp_path / "run" / "shards")
    assert torch.equal(tensor_of(ShardSet.open(tmp_path / "run")), tensor_of(ShardSet.open(tmp_path / "run" / "shards")))
