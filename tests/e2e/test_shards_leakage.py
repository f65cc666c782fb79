"""`clusterq-finetune shards leakage`: planted training images are found and said in words, on the terminal, in JSON and on the page."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.conftest import FACTORY, Cli, DigitsTeacher
from tests.e2e.page import Page
from tests.e2e.test_shards_quality import changed, with_pixels

FAST = ["--permutations", 499, "--subsamples", 2]
PLANTED = 12


class Split(NamedTuple):
    """Real digits that the teacher never saw, half of them called training images."""

    train: Path
    held: Path


@pytest.fixture(scope="module")
def split(digits_teacher: DigitsTeacher, tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("split")
    for number, file in enumerate(sorted(digits_teacher.val.glob("*/*.png"))):
        place = folder / ("train" if number % 2 else "held") / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    return Split(folder / "train", folder / "held")


@pytest.fixture(scope="module")
def planted(digits_run: Path, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's set with training images in place of its first ones."""
    copies = [np.asarray(Image.open(file))[:, :, None] for file in sorted(split.train.glob("*/*.png"))[::20][:PLANTED]]

    def change(samples: list[Any]) -> list[Any]:
        return [*(with_pixels(sample, copy) for sample, copy in zip(samples, copies, strict=False)), *samples[PLANTED:]]

    return changed(digits_run, tmp_path_factory.mktemp("leakage") / "planted", change)


def measured(
    finetune: Cli, teacher: DigitsTeacher, shards: Path, split: Split, page: Path, *flags: object
) -> tuple[dict[str, Any], str]:
    real = ["--train", split.train, "--holdout", split.held]
    done = finetune("shards", "leakage", shards, *teacher.flags[:4], *real, *FAST, "--out", page, "--json", *flags)
    assert done.code == 0, done.err
    return json.loads(done.out.splitlines()[-1]), done.out


def test_planted_training_images_are_found(
    planted: Path, split: Split, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    figures, printed = measured(finetune, digits_teacher, planted, split, tmp_path / "p.html")
    for space in figures["spaces"]:
        assert space["copies"]["exact"] == PLANTED
        assert space["copies"]["corrected"] < 0.05
        assert all(pair["ratio"] == 0 and pair["near"] for pair in space["pairs"])
        assert len({pair["train_name"] for pair in space["pairs"]}) == PLANTED
    sentence = f"{PLANTED} of 120 images equal a training image in pixels."
    page = Page(tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text()
    assert f"! {sentence}" in printed
    assert sentence in page.text
    assert "PRIVATE: this page holds real images and must not be shared." in page.text
    assert page.images == 3 * 6
    assert str(split.train.parent) not in text
    saved = json.loads((tmp_path / "p.json").read_text())
    assert saved == figures
    assert saved["private"] == "This result names real images. Do not share it."


def test_the_names_and_order_of_files_change_nothing(
    digits_run: Path, split: Split, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    renamed = []
    for place in split:
        files = sorted(place.glob("*/*.png"))
        for number, file in enumerate(files):
            to = tmp_path / place.name / file.parent.name / f"{len(files) - number:05}.png"
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
        renamed.append(tmp_path / place.name)
    figures, printed = measured(finetune, digits_teacher, digits_run, split, tmp_path / "a.html")
    again, _ = measured(finetune, digits_teacher, digits_run, Split(*renamed), tmp_path / "b.html")
    for report in (figures, again):
        for space in report["spaces"]:
            for pair in space["pairs"]:
                del pair["train"], pair["train_name"], pair["held"], pair["held_name"]
    assert again == figures
    assert "No test found that the set lies nearer to the training images than to held-out ones." in printed
    assert [space["name"] for space in figures["spaces"]] == ["pixels", "moved", "teacher"]
    assert (figures["train"]["compared"], figures["held"]["compared"], figures["control"]) == (
        270,
        270,
        pytest.approx(135, abs=5),
    )


def test_with_another_network_and_a_student(
    digits_run: Path, split: Split, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    """The student of the generator's own run."""
    networks = ["--student", digits_run, "--other-arch", FACTORY, "--other-weights", "random"]
    figures, printed = measured(finetune, digits_teacher, digits_run, split, tmp_path / "p.html", *networks)
    assert [space["name"] for space in figures["spaces"]] == ["pixels", "moved", "teacher", "other"]
    attacks = [(entry["model"], entry["score"]) for entry in figures["membership"]["attacks"]]
    assert attacks == [
        (model, score) for model in ("teacher", "student") for score in ("loss", "confidence", "likelihood ratio")
    ]
    assert [entry["score"] for entry in figures["membership"]["differences"]] == ["loss", "confidence", "likelihood ratio"]
    assert all(entry["auc_interval"][0] < 0.5 < entry["auc_interval"][1] for entry in figures["membership"]["attacks"])
    assert "the student tells training from held-out images" in printed


def test_training_images_among_the_held_out_ones_are_said(
    digits_run: Path, split: Split, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    both = Split(split.train, split.train)
    _, printed = measured(finetune, digits_teacher, digits_run, both, tmp_path / "p.html")
    assert "! 270 held-out images are training images, too; they hide leakage." in printed


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--holdout", "nowhere"], "--holdout: nowhere is no folder"),
        (["--other-weights", "x.pth"], "--other-arch is missing"),
        (["--student", "nowhere"], "--student: nowhere holds no student.safetensors"),
        (["--out", "nowhere/p.html"], "--out: nowhere/p.html lies in nowhere, which is no folder"),
        (["--out", "p.json"], "--out: p.json is the name of the figures"),
        (["--permutations", "10"], "--permutations"),
    ],
)
def test_mistakes_name_the_flag(
    flags: list[str],
    sentence: str,
    digits_run: Path,
    split: Split,
    finetune: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = finetune("shards", "leakage", digits_run, "--train", split.train, "--holdout", split.held, *flags)
    assert done.code == 2
    assert sentence in done.err
    assert not list(tmp_path.iterdir())


def test_too_few_held_out_images(digits_run: Path, split: Split, finetune: Cli, tmp_path: Path) -> None:
    for label in range(10):
        (tmp_path / "few" / str(label)).mkdir(parents=True)
        shutil.copy(next(iter(sorted(split.held.glob(f"{label}/*.png")))), tmp_path / "few" / str(label))
    done = finetune(
        "shards", "leakage", digits_run, "--train", split.train, "--holdout", tmp_path / "few", "--out", tmp_path / "p.html"
    )
    assert done.code == 2
    assert "--holdout: 10 held-out images do not leave one as a control, expected at least two of each class" in done.err
