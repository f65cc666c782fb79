"""Sets smaller than people should use: fine-tuning finishes all the same, and counts what was there."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from clusterq_common.shards.manifest import read_manifest
from tests.conftest import Cli, DigitsTeacher

# Builds a set in a folder and returns how many training images each class has.
Build = Callable[["Sets", Path], list[int]]


class Sets:
    """Parts of the shared run's images, which are twelve of each digit and one held out."""

    def __init__(self, run: Path, gen: Cli, finetune: Cli) -> None:
        self.run, self.gen, self.finetune = run, gen, finetune

    def subset(self, out: Path, *flags: object) -> None:
        done = self.finetune("shards", "subset", self.run, *flags, "--out", out)
        assert done.code == 0, done.err

    def merge(self, out: Path, *parts: Path) -> None:
        done = self.finetune("shards", "merge", *parts, "--drop-duplicates", "--out", out)
        assert done.code == 0, done.err

    def emit(self, out: Path, *flags: object) -> None:
        done = self.gen("emit", "--run", self.run, *flags, "--out", out)
        assert done.code == 0, done.err


def three_of_ten_classes(sets: Sets, out: Path) -> list[int]:
    sets.subset(out, "--classes", "2,5-6", "--per-class", 5)
    return [0, 0, 5, 0, 0, 5, 5, 0, 0, 0]


def one_image_of_each_class(sets: Sets, out: Path) -> list[int]:
    sets.subset(out, "--per-class", 1)
    return [1] * 10


def one_image(sets: Sets, out: Path) -> list[int]:
    sets.subset(out, "--classes", 9, "--per-class", 1)
    return [0] * 9 + [1]


def unbalanced(sets: Sets, out: Path) -> list[int]:
    many, few = out.with_name("many"), out.with_name("few")
    sets.subset(many, "--classes", "0", "--per-class", 12)
    sets.subset(few, "--classes", "0-4", "--per-class", 2)
    sets.merge(out, many, few)
    return [12, 2, 2, 2, 2, 0, 0, 0, 0, 0]


def nothing_held_out(sets: Sets, out: Path) -> list[int]:
    sets.emit(out, "--per-class", 2, "--heldout-per-class", 0)
    assert "heldout" not in read_manifest(out).splits
    return [2] * 10


@pytest.mark.parametrize(
    ("build", "batch_size"),
    [
        (three_of_ten_classes, 4),
        (one_image_of_each_class, 64),  # more than there are
        (one_image, 1),
        (unbalanced, 19),  # and then a batch of one
        (nothing_held_out, 7),
    ],
)
def test_small_and_lopsided_sets(
    build: Build, batch_size: int, digits_run: Path, digits_teacher: DigitsTeacher, gen: Cli, finetune: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    counts = build(Sets(digits_run, gen, finetune), folder)
    assert read_manifest(folder).splits["train"].per_class == counts
    flags = [
        *digits_teacher.flags[:4],
        "--bits",
        "w4a4",
        "--epochs",
        2,
        "--steps-per-epoch",
        0,
        "--batch-size",
        batch_size,
        "--val",
        digits_teacher.val,
    ]
    done = finetune("--shards", folder, *flags, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["shards"]["training_images"] == sum(counts)
    for model in ("teacher", "calibrated", "student"):
        assert result[model]["images"] == result["evaluated_on"]["images"] == len(list(digits_teacher.val.glob("*/*")))
        assert 0 <= result[model]["top1"] <= result[model]["top5"] <= 100
        assert None not in result[model]["per_class"], "the real images have all classes"
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss/kl" in record]
    assert [record["step"] for record in steps] == list(range(2 * -(-sum(counts) // batch_size)))
    assert all(math.isfinite(record["loss/kl"]) and math.isfinite(record["loss/ce"]) for record in steps)
    agreements = [record["heldout/agreement"] for record in records if "heldout/agreement" in record]
    assert len(agreements) == (0 if build is nothing_held_out else 2)
    again = finetune("evaluate", "--student", tmp_path / "out", "--val", digits_teacher.val, "--json")
    assert json.loads(again.out.splitlines()[-1])["student"]["top1"] == result["student"]["top1"]


def test_what_a_set_lacks_cannot_be_asked_for(
    digits_run: Path, digits_teacher: DigitsTeacher, gen: Cli, finetune: Cli, tmp_path: Path
) -> None:
    Sets(digits_run, gen, finetune).emit(tmp_path / "set", "--per-class", 1, "--heldout-per-class", 0, "--no-logits")
    flags = [
        "--shards",
        tmp_path / "set",
        *digits_teacher.flags[:4],
        "--epochs",
        1,
        "--steps-per-epoch",
        0,
        "--out",
        tmp_path / "out",
    ]
    selected = finetune(*flags, "--select", "heldout")
    assert selected.code == 2
    assert "has no held-out images" in selected.err
    stored = finetune(*flags, "--teacher-logits", "stored")
    assert stored.code == 2
    assert "these shards hold no logits" in stored.err
    assert not (tmp_path / "out").exists(), "nothing was begun"
    done = finetune(*flags, "--select", "guarded")
    assert done.code == 0, done.err
    assert "nothing guards against a student that gets worse" in done.err
    logits = json.loads((tmp_path / "out" / "result.json").read_text())["teacher_logits"]
    assert logits == {"source": "recomputed", "largest_difference": None, "tolerance": None}
