"""Remarks on real images that were skipped, reordered or guessed: counted, named, printed and kept."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.real import Remark, open_validation
from clusterq_finetune.data.real.labels import imagenet_wnids, order_remark, other_order_remark
from clusterq_finetune.evaluation.evaluate import evaluate_models
from clusterq_finetune.evaluation.summary import add_evaluation, summary_lines

ABSENT = "classes without images, left out of averages over classes"
SKIPPED = "no known image files, skipped"


def spec(classes: int) -> InputSpec:
    return InputSpec(size=8, channels=1, num_classes=classes, mean=(0.5,), std=(0.5,))


def tree(root: Path, names: list[str], file: str = "0.png") -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / name / file)
    return root


def lines(root: Path, count: int, **settings: object) -> list[str]:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, count))
    result = evaluate_models({"m": network}, open_validation(root, spec(count), **settings), device=torch.device("cpu"))
    return [remark.line() for remark in result["m"].remarks]


@pytest.mark.parametrize("suffix", ["PNG", "JPG", "JPEG", "TIF", "Bmp"])
def test_suffixes_in_capitals_are_read(tmp_path: Path, suffix: str) -> None:
    tree(tmp_path, ["a", "b"], f"0.{suffix}")
    images = open_validation(tmp_path, spec(2))
    assert len(images) == 2
    assert images.remarks == []


def test_other_files_are_counted_and_named_up_to_ten(tmp_path: Path) -> None:
    tree(tmp_path, ["a", "b"])
    for number in range(12):
        (tmp_path / "b" / f"{number:02}.dcm").write_bytes(b"x")
    (tmp_path / "a" / "._0.png").write_bytes(b"x")
    (tmp_path / "README.txt").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "1.png").write_bytes(b"x")
    images = open_validation(tmp_path, spec(2))
    names = ["a/._0.png", *(f"b/{number:02}.dcm" for number in range(9))]
    assert images.remarks == [
        Remark(what=SKIPPED, count=13, names=names),
        Remark(what="files outside class folders, skipped", count=2, names=[".cache/1.png", "README.txt"]),
    ]
    assert images.remarks[0].line() == f"{SKIPPED}: 13 ({', '.join(names)}, ...)"
    assert len(images) == 2


def test_links_and_hidden_copies_are_counted(tmp_path: Path) -> None:
    tree(tmp_path / "val", ["a", "b"])
    tree(tmp_path / "val" / "a", [".ipynb_checkpoints"])
    tree(tmp_path, ["elsewhere"])
    (tmp_path / "val" / "a" / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "val" / "b" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "val" / "b" / "linked.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    images = open_validation(tmp_path / "val", spec(2))
    assert [images.name(index) for index in range(len(images))] == ["a/0.png", "b/0.png", "b/linked.png"]
    assert images.remarks == [Remark(what=SKIPPED, count=3, names=["a/.ipynb_checkpoints/0.png", "a/broken.png", "b/more"])]


def test_what_lies_beside_tars_is_named(tmp_path: Path) -> None:
    tree(tmp_path / "val", ["a", "b"])
    with tarfile.open(tmp_path / "val" / "0.tar", "w") as tar:
        for name, source in (("0.png", tmp_path / "val" / "a" / "0.png"), ("0.cls", tmp_path / "label")):
            source.write_text("1") if name == "0.cls" else None
            tar.add(source, name)
    images = open_validation(tmp_path / "val", spec(2))
    assert images.remarks == [Remark(what="files and folders beside the tars, skipped", count=2, names=["a", "b"])]


def test_numbers_in_another_order_are_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(number) for number in range(11)]
    tree(tmp_path / "val", names)
    (line,) = lines(tmp_path / "val", 11)
    assert "class 0: 0, class 1: 1, class 2: 10, class 3: 2" in line
    assert f"Warning: {line}" in capsys.readouterr().err
    (tmp_path / "names").write_text("\n".join(names))
    assert lines(tmp_path / "val", 11, classes=tmp_path / "names") == []


@pytest.mark.parametrize(
    ("names", "same"),
    [
        (["0", "1", "2"], True),
        (["class10", "class9"], False),
        (["08", "09", "10"], True),
        (["ant", "bee", "c3"], True),
        (["1_cat", "10_dog", "2_cow"], False),
        (imagenet_wnids(), True),
    ],
)
def test_where_the_two_orders_differ(names: list[str], same: bool) -> None:
    assert (order_remark(names) is None) == same


def test_the_order_of_a_sets_own_class_names_is_compared() -> None:
    assert other_order_remark(["cat", "dog"], None) is None
    assert other_order_remark(["cat", "dog"], ["cat", "dog"]) is None
    assert other_order_remark(["0", "1"], ["cat", "dog"]) is None, "other names say nothing about the order"
    remark = other_order_remark(["ant", "cat", "dog"], ["ant", "dog", "cat"])
    assert remark is not None
    assert (remark.count, remark.names) == (2, ["class 1: cat, not dog", "class 2: dog, not cat"])


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    tree(tmp_path / "val", ["ant", "cat"])
    (tmp_path / "val" / "bee").mkdir()
    assert lines(tmp_path / "val", 3) == [f"{ABSENT}: 1 (bee)"]
    (tmp_path / "names").write_text("dog\nant\nbee\ncat\neel\n")
    assert lines(tmp_path / "val", 5, classes=tmp_path / "names") == [f"{ABSENT}: 3 (dog, bee, eel)"]


def test_kaggles_table_may_say_more_than_there_is(tmp_path: Path) -> None:
    wnids = imagenet_wnids()
    rows = "".join(f"ILSVRC2012_val_{number:08},{wnids[number]} 1 2 3 4\n" for number in range(1, 4))
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "ILSVRC2012_val_00000002.png")
    (tmp_path / "ILSVRC2012_val_00000003.txt").write_bytes(b"x")
    remarks = lines(tmp_path, 1000)
    assert remarks[0] == f"{SKIPPED}: 1 (ILSVRC2012_val_00000003.txt)"
    assert remarks[1] == "lines of LOC_val_solution.csv without an image: 2 (ILSVRC2012_val_00000001, ILSVRC2012_val_00000003)"
    assert remarks[2].startswith(f"{ABSENT}: 999 (0, 1, 3, ")


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(2)[torch.zeros(len(x), dtype=torch.long)]


def test_remarks_are_printed_and_kept(tmp_path: Path) -> None:
    tree(tmp_path, ["a", "b"])
    (tmp_path / "b" / "notes").write_bytes(b"x")
    images = open_validation(tmp_path, spec(2))
    result: dict[str, object] = {"m": {}}
    evaluated = evaluate_models({"m": First()}, images, device=torch.device("cpu"))
    add_evaluation(result, evaluated, images, spec(2))
    assert result["evaluated_on"]["remarks"] == [{"what": SKIPPED, "count": 1, "names": ["b/notes"]}]
    assert f"{SKIPPED}: 1 (b/notes)" in summary_lines(result)
