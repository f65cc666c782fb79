"""`clusterq-finetune shards quality`: defects that were planted are found and said in words, on the terminal, in JSON and on the page."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clusterq_common.images import png
from clusterq_common.shards.digest import sample_digest
from clusterq_common.shards.manifest import read_manifest, set_digest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.sample import Sample
from clusterq_common.shards.write import Written, shard_name, write_manifest, write_shard
from tests.conftest import FACTORY, Cli, DigitsTeacher
from tests.e2e.page import Page


def changed(run: Path, out: Path, change: Callable[[list[Sample]], list[Sample]]) -> Path:
    """The run's training images as someone spoiled them: a set that is consistent in itself."""
    source = ShardSet.open(run)
    reader = source.split("train")
    made = change([reader.read_sample(number) for number in range(len(reader))])
    written = Written.nothing(10)
    written.add(write_shard(out, shard_name("train", 0), made, start_key=0, num_classes=10))
    splits = {"train": written.split()}
    write_manifest(out, read_manifest(run / "shards").model_copy(update={"splits": splits, "digest": set_digest(splits)}))
    return out


def pixels_of(sample: Sample) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return png.decode(sample.png, (8, 8), 1)


def with_pixels(sample: Sample, pixels: np.ndarray[Any, np.dtype[np.uint8]], label: int | None = None) -> Sample:
    label = sample.label if label is None else label
    return replace(sample, png=png.encode(pixels), label=label, content=sample_digest(label, pixels))


def spoil(samples: list[Sample]) -> list[Sample]:
    """Class 3 is one picture with a little noise, class 5 holds two copies, and what is labelled 6 are images of class 7."""
    random = np.random.default_rng(0)
    of_class = {label: [n for n, sample in enumerate(samples) if sample.label == label] for label in range(10)}
    first = pixels_of(samples[of_class[3][0]]).astype(int)
    for n in of_class[3]:
        shaken = first + random.integers(-2, 3, first.shape)
        samples[n] = with_pixels(samples[n], shaken.clip(0, 255).astype(np.uint8))
    kept, other = of_class[5][:2]
    samples[other] = with_pixels(samples[other], pixels_of(samples[kept]))
    for n, m in zip(of_class[6], of_class[7], strict=True):
        moved = np.where(pixels_of(samples[m]) < 255, pixels_of(samples[m]) + 1, 254).astype(np.uint8)
        samples[n] = with_pixels(samples[n], moved)
    return samples


def measured(finetune: Cli, teacher: DigitsTeacher, shards: Path, page: Path, *flags: object) -> tuple[dict[str, Any], str]:
    done = finetune("shards", "quality", shards, *teacher.flags[:4], "--out", page, "--json", *flags)
    assert done.code == 0, done.err
    return json.loads(done.out.splitlines()[-1]), done.out


@pytest.fixture(scope="module")
def spoiled(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(digits_run, tmp_path_factory.mktemp("quality") / "spoiled", spoil)


def test_planted_defects_are_found(spoiled: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path) -> None:
    figures, printed = measured(finetune, digits_teacher, spoiled, tmp_path / "q.html")
    rows = {row["label"]: row for row in figures["per_class"]}
    assert rows[3]["near"] == 1
    assert rows[5]["exact"] == 2
    assert rows[6]["agreement"] < 0.2
    assert rows[6]["taken_for"] == 7
    assert figures["sources"]["set"]["agreement"] == pytest.approx(np.mean([row["agreement"] for row in rows.values()]))
    assert {image["label"] for image in figures["contradicted"]} == {6}
    assert figures["pairs"][0] == {**figures["pairs"][0], "label": 5, "distance": 0}
    page = Page(tmp_path / "q.html")
    for sentence in (
        "100 % of the 12 images of class 3 are near-duplicates of another one: the class has collapsed.",
        "2 images (1.67 %) have an exact copy among the others, more than 1 %.",
        "images of class 6, less than half; most often it says 7.",
        "but its maker says that others were dropped: labels or images were changed since.",
    ):
        assert sentence in printed, printed
        assert sentence in page.text
    assert "labelled 6, the teacher says 7" in page.text
    assert page.images == 10 + len(figures["pairs"]) + len(figures["contradicted"])
    assert {"trust", "figures", "images", "teacher", "network", "diversity", "duplicates", "classes", "origins"} <= page.ids


def test_training_records_how_often_teacher_and_student_name_the_label(
    spoiled: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    flags = [
        "--report",
        "--teacher-logits",
        "recomputed",
        "--epochs",
        1,
        "--steps-per-epoch",
        0,
        "--batch-size",
        40,
        "--out",
        tmp_path / "tuned",
    ]
    done = finetune("--shards", spoiled, *digits_teacher.flags[:4], *flags, "--report")
    assert done.code == 0, done.err
    lines = (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if "epoch" not in record]
    figures, _ = measured(finetune, digits_teacher, spoiled, tmp_path / "q.html")
    seen = np.mean([step["teacher/accuracy"] for step in steps])
    assert len(steps) == 3
    assert seen == pytest.approx(figures["sources"]["set"]["agreement"], abs=1e-6)
    assert np.mean([step["student/accuracy"] for step in steps]) < np.mean([step["student/agreement"] for step in steps])
    assert "student names the stored label" in Page(tmp_path / "tuned" / "report.html").text


def test_the_untouched_set_has_none_of_them(
    digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    figures, printed = measured(finetune, digits_teacher, digits_run, tmp_path / "q.html")
    assert figures["sources"]["set"]["agreement"] == 1
    assert figures["contradicted"] == []
    assert figures["of_images"] == figures["sources"]["set"]["images"] == figures["sources"]["noise"]["images"] == 120
    assert figures["sources"]["noise"]["agreement"] < 0.3
    assert "collapsed" not in printed
    assert "The teacher names the stored label on every image." in Page(tmp_path / "q.html").text
    again, _ = measured(finetune, digits_teacher, digits_run, tmp_path / "again.html")
    assert again == figures
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "q.html").read_bytes()


def test_in_a_run_folder_the_teacher_is_found_and_a_part_is_drawn(digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    done = finetune("shards", "quality", digits_run, "--images", 40, "--seed", 3, "--out", tmp_path / "q.html", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out.splitlines()[-1])
    assert 0 <= figures["score"] <= 1
    assert [row["images"] for row in figures["per_class"]] == [4] * 10
    assert "40 of 120 images were measured" in done.out
    assert "11.11 % would show" in done.out
    assert "40 of 120" in Page(tmp_path / "q.html").text


def test_beside_real_images_and_another_network(
    digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    other = ["--other-arch", FACTORY, "--other-weights", "random"]
    page = tmp_path / "q.html"
    figures, printed = measured(finetune, digits_teacher, digits_run, page, "--real", digits_teacher.val, *other)
    own, noise, real = (figures["sources"][name] for name in ("set", "noise", "real"))
    assert real["images"] == own["images"], "as many, or neighbours could not be compared"
    assert real["agreement"] > 0.8
    assert real["frechet"]["squared"] < own["frechet"]["squared"] < noise["frechet"]["squared"]
    assert own["other"] < 0.4, "a network that was never trained"
    assert (figures["real"]["name"], figures["real"]["layout"], figures["real"]["unreadable"]) == ("val", "class folders", 0)
    text = Page(page).text
    assert "real images" in printed.splitlines()[0]
    assert "The squared Frechet distance to the real images is" in text
    assert "names the label" in text
    assert str(digits_teacher.val.parent) not in page.read_text(), "a page that is passed on names no path"


def test_the_same_network_as_the_other_one_agrees(
    digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    other = ["--other-arch", FACTORY, "--other-weights", digits_teacher.weights]
    figures, _ = measured(finetune, digits_teacher, digits_run, tmp_path / "q.html", "--split", "heldout", *other)
    for source in figures["sources"].values():
        assert source["other"] == source["agreement"]
        assert source["other_teacher"] == 1
    assert figures["split"] == "heldout"
    assert figures["other_digest"] == figures["teacher_digest"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--other-weights", "x.pth"], "--other-arch is missing"),
        (
            ["--other-arch", "resnet20_cifar10", "--other-weights", "random"],
            "--other-arch: resnet20_cifar10 takes 3x32x32 images",
        ),
        (["--other-arch", "resnet2_cifar10"], "--other-arch: 'resnet2_cifar10' is no pytorchcv model"),
        (["--real-classes", "x.txt"], "--real-classes: there is no --real"),
        (["--crop-pct", "0.9"], "--crop-pct, --interpolation or --pixel-range: there is no --real"),
        (["--real", "nowhere"], "--real: nowhere is no folder"),
        (["--out", "nowhere/q.html"], "--out: nowhere/q.html lies in nowhere, which is no folder"),
        (["--images", "1"], "--images"),
        (["--weights", "nowhere.pth"], "--weights"),
    ],
)
def test_mistakes_name_the_flag(
    flags: list[str], sentence: str, digits_run: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = finetune("shards", "quality", digits_run, *flags)
    assert done.code == 2
    assert sentence in done.err
    assert not list(tmp_path.iterdir())
