"""Accuracy on real images against a slow count, and the folders that they lie in."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise
from clusterq_common.intervals import wilson_interval
from clusterq_common.teacher.load import load_teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_finetune.data.real import ValidationImages, open_validation
from clusterq_finetune.data.real.base import Sample
from clusterq_finetune.data.real.files import ImageFiles
from clusterq_finetune.data.real.labels import imagenet_wnids
from clusterq_finetune.evaluation.evaluate import evaluate_models
from tests.finetune.inputs import IMAGENET, SMALL

CPU = torch.device("cpu")


def write_tree(root: Path, names: list[str], per_class: int = 4, size: int = 8, suffix: str = "png") -> None:
    random = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(root / name / f"{number}.{suffix}")


class ByBrightness(nn.Module):
    """Logits that depend on the image in a known way; remembers the mode it ran in."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return torch.stack([torch.sin(x.sum((1, 2, 3)) * (k + 1)) for k in range(self.classes)], dim=1)


def test_accuracy_equals_a_slow_count(tmp_path: Path) -> None:
    write_tree(tmp_path, list("abcdefg"), per_class=3)
    spec = SMALL.model_copy(update={"num_classes": 7})
    images = open_validation(tmp_path, spec)
    model, other = ByBrightness(7).train(), ByBrightness(7).eval()
    seen: list[tuple[int, int, dict[str, float]]] = []
    results = evaluate_models({"m": model, "o": other}, images, device=CPU, batch_size=4, progress=lambda *at: seen.append(at))
    top1 = top5 = 0
    for index in range(len(images)):
        pixels, label, _ = images[index]
        assert pixels is not None
        order = model(normalise(pixels[None], spec))[0].argsort(descending=True).tolist()
        top1 += order[0] == label
        top5 += label in order[:5]
    assert results["m"].top1 == pytest.approx(100 * top1 / 21)
    assert results["m"].top5 == pytest.approx(100 * top5 / 21)
    assert results["m"].images == 21
    assert results["o"].top1 == results["m"].top1
    assert results["m"].agreement is None
    assert seen[-1] == (21, 21, pytest.approx({"m": results["m"].top1, "o": results["o"].top1}))
    assert model.training, "the mode is put back"
    assert not any(model.modes[:6]), "evaluated in eval mode"


class Fixed(nn.Module):
    """The next rows of a table of logits, whatever the images."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.at = table, 0

    def forward(self, x: Tensor) -> Tensor:
        self.at += len(x)
        return self.table[self.at - len(x) : self.at]


def test_the_other_figures_against_plain_counts(tmp_path: Path) -> None:
    write_tree(tmp_path, ["a", "b", "c"], per_class=11)
    labels = [0] * 11 + [1] * 11 + [2] * 11
    random = torch.Generator().manual_seed(0)
    tables = {name: torch.randn(33, 3, generator=random) * 2 for name in ("teacher", "student")}
    models = {name: Fixed(table) for name, table in tables.items()}
    results = evaluate_models(models, open_validation(tmp_path, SMALL), device=CPU, batch_size=5)
    predicted = {name: table.argmax(1).tolist() for name, table in tables.items()}
    student = results["student"]
    agreed = sum(a == b for a, b in zip(predicted["teacher"], predicted["student"], strict=True))
    assert student.agreement == pytest.approx(100 * agreed / 33)
    assert results["teacher"].agreement is None
    for label in range(3):
        own = [p for p, wanted in zip(predicted["student"], labels, strict=True) if wanted == label]
        assert student.per_class[label] == pytest.approx(100 * own.count(label) / 11)
    wrong = Counter((a, b) for a, b in zip(labels, predicted["student"], strict=True) if a != b)
    assert {(pair.label, pair.predicted): pair.images for pair in student.worst_pairs} == dict(wrong)
    assert [pair.images for pair in student.worst_pairs] == sorted(wrong.values(), reverse=True)
    gap = 0.0
    confidence, top1 = tables["student"].softmax(1).max(1)
    for number in range(15):
        inside = ((confidence * 15).long() == number).nonzero().flatten().tolist()
        right = sum(int(top1[n]) == labels[n] for n in inside)
        gap += abs(right - float(confidence[inside].sum()))
    assert student.calibration_error == pytest.approx(100 * gap / 33, rel=1e-4)


def test_a_class_without_images_has_no_accuracy(tmp_path: Path) -> None:
    write_tree(tmp_path, ["a", "c"], per_class=2)
    (tmp_path / "b").mkdir()
    result = evaluate_models({"m": ByBrightness(3)}, open_validation(tmp_path, SMALL), device=CPU)["m"]
    assert result.per_class[1] is None


@pytest.mark.parametrize(("hits", "count", "low", "high"), [(81, 263, 25.53, 36.62), (0, 20, 0, 16.11), (20, 20, 83.89, 100)])
def test_wilson_interval(hits: int, count: int, low: float, high: float) -> None:
    """Newcombe (1998), Table I."""
    assert wilson_interval(hits, count) == pytest.approx((low, high), abs=0.01)


def test_unreadable_images_are_counted_and_named(tmp_path: Path) -> None:
    write_tree(tmp_path, ["a", "b", "c"])
    (tmp_path / "b" / "1.png").write_bytes(b"no image")
    whole = (tmp_path / "c" / "2.png").read_bytes()
    (tmp_path / "c" / "2.png").write_bytes(whole[: len(whole) // 2])
    results = evaluate_models({"m": ByBrightness(3)}, open_validation(tmp_path, SMALL), device=CPU, batch_size=5, workers=2)[
        "m"
    ]
    assert results.unreadable == ["b/1.png", "c/2.png"]
    assert results.images == 10
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no image")
    for workers in (0, 2):
        with pytest.raises(ClusterqError, match="none of the 12 images"):
            evaluate_models({"m": ByBrightness(3)}, open_validation(tmp_path, SMALL), device=CPU, workers=workers)


def test_a_workers_batch_lies_in_shared_memory_before_it_is_sent(tmp_path: Path) -> None:
    """Freed by the sending thread, batches leave holes in a worker's heap, which then grows for minutes."""
    write_tree(tmp_path, ["a", "b", "c"])
    images = open_validation(tmp_path, SMALL)
    seen: list[bool] = []

    def collate(samples: list[Sample]) -> bool:
        return images.collate(samples).pixels.is_shared()

    for workers in (0, 1):
        seen += DataLoader(images.samples(), batch_size=12, num_workers=workers, collate_fn=collate)
    assert seen == [False, True]


def test_imagenet_index_comes_from_the_full_list(tmp_path: Path) -> None:
    wnids = imagenet_wnids()
    assert len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    assert wnids[0] == "n01440764"
    write_tree(tmp_path, [wnids[7], wnids[999], wnids[500]], per_class=1, suffix="JPEG")
    images = open_validation(tmp_path, IMAGENET)
    assert [images[n][1] for n in range(3)] == [7, 500, 999]


def test_plain_folders_and_a_class_list(tmp_path: Path) -> None:
    write_tree(tmp_path / "val", ["ant", "bee"], per_class=1)
    with pytest.raises(ClusterqError, match=r"2 class folders, expected the teacher's 3 classes; pass classes=FILE"):
        open_validation(tmp_path / "val", SMALL)
    names = tmp_path / "names.txt"
    names.write_text("bee\nwasp\nant\n")
    images = open_validation(tmp_path / "val", SMALL, classes=names)
    assert [images[n][1] for n in range(2)] == [2, 0]
    (tmp_path / "val" / "wasp").mkdir()
    assert [open_validation(tmp_path / "val", SMALL)[n][1] for n in range(2)] == [0, 1]
    names.write_text("bee\nbee\nant\n")
    with pytest.raises(ClusterqError, match="2 distinct names on 3 lines"):
        open_validation(tmp_path / "val", SMALL, classes=names)
    with pytest.raises(ClusterqError, match="cannot be read"):
        open_validation(tmp_path / "val", SMALL, classes=tmp_path / "absent")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, sentence: str, spec: InputSpec = SMALL) -> None:
        with pytest.raises(ClusterqError, match=sentence):
            open_validation(path, spec)

    refused(tmp_path / "absent", "is no folder, expected class folders")
    (tmp_path / "loose").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "loose" / "x.png")
    refused(tmp_path / "loose", "1 loose images")
    for name in ("a", "b", "c"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    refused(tmp_path / "empty", "no images in the 3 class folders")
    write_tree(tmp_path / "foreign", ["n01440764", "cats"], per_class=1)
    refused(tmp_path / "foreign", r"1 class folders that are not in the class list \(cats\)", IMAGENET)


def thin_out(images: ValidationImages, step: int) -> None:
    assert isinstance(images, ImageFiles)
    images.paths, images.labels = images.paths[::step], images.labels[::step]


@pytest.mark.real
def test_real_photographs_with_a_real_imagenet_model(real_data: Path) -> None:
    models = real_data / "models"
    sizes = {"input_size": 224, "in_channels": 3, "num_classes": 1000, "mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}
    weights = str(models / "mobilenet_v1_x025_imagenet.safetensors")
    teacher = load_teacher(TeacherConfig(arch=f"{models / 'mobilenet_v1.py'}:mobilenet_v1_x025", weights=weights, **sizes))
    images = open_validation(real_data / "data" / "imagenet-like" / "val", teacher.spec)
    assert len(images) == 1000
    thin_out(images, 10)
    result = evaluate_models({"teacher": teacher.model}, images, device=CPU)["teacher"]
    assert 35 < result.top1 < 62, "48.8 % on all 1000"
    assert result.top5 > result.top1


@pytest.mark.real
def test_real_cifar(cifar_subset: Callable[[int], tuple[Tensor, Tensor]], real_data: Path) -> None:
    weights = str(real_data / "models" / "resnet20_cifar10.safetensors")
    teacher = load_teacher(TeacherConfig(arch="resnet20_cifar10", weights=weights))
    images = open_validation(real_data / "data" / "cifar10" / "test", teacher.spec)
    thin_out(images, 20)
    result = evaluate_models({"teacher": teacher.model}, images, device=CPU)["teacher"]
    assert result.images == 500
    assert 88 < result.top1 < 96, "92.02 % on all 10,000"
