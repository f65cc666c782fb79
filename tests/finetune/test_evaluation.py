"""Real images: layouts, preprocessing, and accuracy against a slow count."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise
from clusterq_common.intervals import wilson_interval
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.load import load_teacher
from clusterq_common.teacher.spec import Geometry, InputSpec, TeacherConfig
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.preprocess import covered, describe_preprocessing, preprocess, resized
from clusterq_finetune.data.real import ValidationImages, open_validation
from clusterq_finetune.data.real.base import Sample
from clusterq_finetune.data.real.files import ImageFiles
from clusterq_finetune.data.real.labels import imagenet_wnids
from clusterq_finetune.evaluation.evaluate import evaluate_models

CPU = torch.device("cpu")
SMALL = InputSpec(size=8, channels=3, num_classes=3, mean=(0.5,) * 3, std=(0.5,) * 3)
IMAGENET = InputSpec(size=224, channels=3, num_classes=1000, mean=(0.5,) * 3, std=(0.5,) * 3)


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


def as_torchvision(image: Image.Image, shorter: int, size: int, resampling: Image.Resampling) -> Image.Image:
    """Resize(shorter) and CenterCrop(size) of torchvision 0.2 and later, for PIL images, step by step."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = shorter, int(shorter * long / short)
    image = image.resize((new_short, new_long) if width <= height else (new_long, new_short), resampling)
    # Written as torchvision writes it, whose pixels these must be.
    top, left = int(round((image.height - size) / 2.0)), int(round((image.width - size) / 2.0))  # noqa: RUF046
    return image.crop((left, top, left + size, top + size))


@pytest.mark.parametrize(
    "size", [(299, 299), (500, 333), (333, 500), (224, 600), (256, 411), (64, 64), (7, 5), (1, 1), (259, 258)]
)
@pytest.mark.parametrize(
    ("side", "share", "shorter"), [(224, 0.875, 256), (240, 0.882, 273), (300, 0.904, 332), (224, 1.0, 224), (32, 0.875, 37)]
)
def test_photographs_are_resized_and_cropped_as_torchvision_does(
    size: tuple[int, int], side: int, share: float, shorter: int
) -> None:
    image = Image.effect_noise(size, 60).convert("RGB")
    spec = IMAGENET.model_copy(update={"size": side})
    for name, resampling in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        geometry = Geometry.validated({"crop_pct": share, "interpolation": name})
        expected = np.array(as_torchvision(image, shorter, side, resampling))
        np.testing.assert_array_equal(preprocess(image, spec, geometry).permute(1, 2, 0).numpy(), expected)
        assert f"shorter side to {shorter} ({name}, antialiased), centre crop {side}" in describe_preprocessing(spec, geometry)


@given(size=st.integers(65, 700), share=st.floats(0.5, 1), width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_the_crop_lies_inside(size: int, share: float, width: int, height: int) -> None:
    shorter, other = covered(size, share)
    assert shorter == other
    assert size <= shorter <= size / share + 1
    wide, high = resized((width, height), (shorter, shorter))
    assert min(wide, high) == shorter
    assert max(wide, high) == int(shorter * max(width, height) / min(width, height))


@given(
    down=st.integers(1, 700),
    across=st.integers(1, 700),
    share=st.floats(0.5, 1),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
)
def test_an_image_that_is_not_square_is_just_covered(down: int, across: int, share: float, width: int, height: int) -> None:
    high, wide = covered((down, across), share)
    assert down <= high <= down / share + 1
    assert across <= wide <= across / share + 1
    new_width, new_height = resized((width, height), (high, wide))
    scale = max(Fraction(high, height), Fraction(wide, width))
    assert (new_width, new_height) == (int(width * scale), int(height * scale))
    assert new_width >= wide
    assert new_height >= high
    assert new_width == wide or new_height == high


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (50, 100), (40, 30), (97, 31), (20, 90)])
@pytest.mark.parametrize("share", [None, 1.0, 0.8])
def test_height_and_width_are_not_confused(size: tuple[int, int], share: float | None) -> None:
    # Left to right it grows brighter, top to bottom a second channel does.
    width, height = size
    across = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    image = Image.fromarray(np.stack([across, down, np.zeros_like(across)], axis=2).round().astype(np.uint8))
    spec = SMALL.model_copy(update={"size": (24, 48)})
    geometry = Geometry(crop_pct=share, interpolation="bilinear")
    prepared = preprocess(image, spec, geometry)
    assert prepared.shape == (3, 24, 48)
    high, wide = (24, 48) if share is None else covered((24, 48), share)
    new_width, new_height = (48, 24) if share is None else resized(size, (high, wide))
    # What the crop keeps of the whole range, in the middle.
    kept = [255 * 48 / new_width, 255 * 24 / new_height]
    for channel, along, share_kept in ((0, (0,), kept[0]), (1, (1,), kept[1])):
        line = prepared[channel].float().mean(along)
        assert (line.diff() >= 0).all()
        assert line[-1] - line[0] == pytest.approx(share_kept, abs=20)
        assert line.mean() == pytest.approx(127.5, abs=8)
    assert (prepared[0].float().std(0) < 1).all(), "one value in each column"
    described = describe_preprocessing(spec, geometry)
    assert ("whole image at 24x48" if share is None else f"resized to cover {high}x{wide}") in described


def test_inputs_that_are_not_square_are_covered_unless_something_else_is_asked_for() -> None:
    known = known_geometry((16, 32))
    assert known == known_geometry((224, 448), "efficientnet_b1") == Geometry(crop_pct=1.0, interpolation="bilinear")
    assert EvaluationConfig().override_with(known) == known
    for off in ("off", False):
        assert EvaluationConfig.validated({"crop_pct": off}).override_with(known).crop_pct is None
    assert EvaluationConfig.validated({"crop_pct": "off"}).override_with(known_geometry(224)).crop_pct is None
    assert EvaluationConfig.validated({"crop_pct": "0.5"}).override_with(known).crop_pct == 0.5
    for wrong in ("0", "-0.5", "1.5", "nan", "inf", "on", "", True, [0.5]):
        with pytest.raises(ClusterqError, match="crop_pct: must be above 0 and at most 1, or off"):
            EvaluationConfig.validated({"crop_pct": wrong})


def test_an_even_share_is_not_rounded_up() -> None:
    sides = ((224, 0.7), (231, 0.55), (180, 0.9), (224, 0.56))
    assert [covered(size, share)[0] for size, share in sides] == [320, 420, 200, 400]


def test_small_images_are_used_whole_in_the_teachers_channels() -> None:
    whole = known_geometry(8)
    grey = Image.effect_noise((8, 8), 60)
    colour = preprocess(grey, SMALL, whole)
    assert all(torch.equal(colour[c], torch.from_numpy(np.array(grey))) for c in range(3))
    prepared = preprocess(grey.convert("RGB"), SMALL.model_copy(update={"channels": 1}), whole)
    assert torch.equal(prepared[0], colour[0])
    assert preprocess(grey.resize((20, 10)), SMALL, whole).shape == (3, 8, 8)
    assert "whole image" in describe_preprocessing(SMALL, whole)


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
