"""Other people's programs as referees: they read the shards without a line of clusterq."""

import json
from pathlib import Path

import numpy as np
import pytest
import wids
from datasets import ClassLabel, load_dataset

from clusterq_common.shards.read import ShardSet
from tests.conftest import Cli


@pytest.fixture(scope="module")
def folder(digits_run: Path, tmp_path_factory: pytest.TempPathFactory, gen: Cli) -> Path:
    """Two shards of named digits."""
    base = tmp_path_factory.mktemp("readers")
    (base / "names.txt").write_text(
        "\n".join(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]) + "\n"
    )
    wanted = ("--per-class", 3, "--heldout-per-class", 1, "--samples-per-shard", 20, "--class-names", base / "names.txt")
    done = gen("emit", "--run", digits_run, *wanted, "--license", "MIT", "--out", base / "set")
    assert done.code == 0, done.err
    return base / "set"


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets(folder: Path, tmp_path: Path, streaming: bool) -> None:
    loaded = load_dataset(str(folder), split="train", streaming=streaming, cache_dir=str(tmp_path))
    classes = loaded.features["cls"]
    assert isinstance(classes, ClassLabel)
    assert classes.names[:3] == ["zero", "one", "two"]
    rows = list(loaded)
    ours = ShardSet.open(folder).split("train")
    assert len(rows) == len(ours) == 30
    for number, row in enumerate(rows):
        pixels, label, logits = ours.read(number)
        np.testing.assert_array_equal(np.asarray(row["png"]), pixels[:, :, 0])
        assert row["cls"] == label == row["json"]["label"]
        np.testing.assert_array_equal(np.asarray(row["logits.npy"], np.float16), logits)
    heldout = load_dataset(str(folder), split="heldout", streaming=streaming, cache_dir=str(tmp_path))
    assert len(list(heldout)) == 10


def test_wids_gives_random_access(folder: Path, tmp_path: Path) -> None:
    dataset = wids.ShardListDataset(
        str(folder / "wids-train.json"), base=str(folder), cache_dir=str(tmp_path), transformations=[]
    )
    ours = ShardSet.open(folder).split("train")
    assert len(dataset) == 30
    for number in (0, 21, 29):
        sample = dataset[number]
        assert sample["__key__"] == ours.key(number)
        assert int(sample[".cls"].read()) == ours.label(number)


def test_timm_index(folder: Path) -> None:
    """The fields that timm's reader of webdataset folders takes from `_info.json`, as it takes them."""
    info = json.loads((folder / "_info.json").read_text())
    for split, samples in (("train", 30), ("heldout", 10)):
        facts = info["splits"][split]
        assert facts["name"] == split
        assert facts["num_samples"] == samples == sum(facts["shard_lengths"])
        assert len(facts["filenames"]) == len(facts["shard_lengths"])
        assert all((folder / name).is_file() for name in facts["filenames"])
