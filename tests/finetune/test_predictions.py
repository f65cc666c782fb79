"""Predictions image by image and figures of two classes, against scikit-learn and plain counts; the same from several processes."""

import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score
from torch import nn

from clusterq_common.device.distributed import process_group
from clusterq_common.errors import ClusterqError
from clusterq_common.files import need_place
from clusterq_common.intervals import wilson_interval
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.evaluation.binary import auroc, binary_result
from clusterq_finetune.evaluation.evaluate import EvaluationResult, evaluate_models
from clusterq_finetune.evaluation.predictions import KeptPredictions, Predictions, save_csv
from clusterq_finetune.evaluation.summary import summary_lines
from tests.several import in_processes

CPU = torch.device("cpu")


def spec(classes: int) -> InputSpec:
    return InputSpec(size=8, channels=1, num_classes=classes, mean=(0.5,), std=(0.5,))


def tree(root: Path, per_class: dict[str, int]) -> Path:
    """Noise by class folder, brighter from folder to folder."""
    random = np.random.default_rng(0)
    for number, (name, count) in enumerate(per_class.items()):
        (root / name).mkdir(parents=True)
        for image in range(count):
            pixels = random.integers(0, 200 + 10 * number, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{image:03}.png")
    return root


def network(classes: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).eval()


def predicted(root: Path, classes: int, *, probabilities: bool = False) -> tuple[EvaluationResult, dict[str, np.ndarray]]:
    kept = Predictions(probabilities=probabilities)
    images = open_validation(root, spec(classes))
    result = evaluate_models({"m": network(classes)}, images, device=CPU, batch_size=8, predictions=kept)
    return result["m"], kept.merged()


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_balanced_accuracy_is_over_the_classes_present(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 3, "b": 30, "c": 11})
    (tmp_path / "d").mkdir()
    result, arrays = predicted(tmp_path, 4)
    expected = balanced_accuracy_score(arrays["label"], arrays["m"])
    assert result.balanced_accuracy == pytest.approx(100 * expected)
    assert result.binary is None
    assert abs(result.balanced_accuracy - result.top1) > 1, "the classes are of different sizes"


def test_two_classes_against_scikit_learn(tmp_path: Path) -> None:
    result, arrays = predicted(tree(tmp_path, {"healthy": 40, "ill": 15}), 2, probabilities=True)
    assert result.binary is not None
    label, logits = arrays["label"], arrays["m"]
    assert result.binary.auroc == pytest.approx(roc_auc_score(label, arrays["m_probabilities"][:, 1]))
    assert result.binary.sensitivity == pytest.approx(100 * recall_score(label, logits, pos_label=1))
    assert result.binary.specificity == pytest.approx(100 * recall_score(label, logits, pos_label=0))
    assert result.binary.sensitivity_interval == wilson_interval(int(((label == 1) & (logits == 1)).sum()), 15)
    assert result.binary.specificity_interval == wilson_interval(int(((label == 0) & (logits == 0)).sum()), 40)
    assert result.balanced_accuracy == pytest.approx((result.binary.sensitivity + result.binary.specificity) / 2)
    lines = summary_lines({"m": result.model_dump()})
    assert f"balanced {result.balanced_accuracy:.2f} %" in lines[0]
    assert f"AUROC {result.binary.auroc:.4f} (" in lines[1]
    assert "class 1 is the positive one" in lines[1]


def slow_delong(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Area and variance by all pairs, as DeLong et al. write it: psi is 1, 1/2 or 0; S10 and S01 are its variances by image."""
    psi = np.zeros((len(positive), len(negative)))
    for i, j in product(range(len(positive)), range(len(negative))):
        psi[i, j] = 1.0 if positive[i] > negative[j] else 0.5 if positive[i] == negative[j] else 0.0
    area = psi.mean()
    s10 = sum((row.mean() - area) ** 2 for row in psi) / (len(positive) - 1)
    s01 = sum((column.mean() - area) ** 2 for column in psi.T) / (len(negative) - 1)
    return float(area), float(s10 / len(positive) + s01 / len(negative))


@pytest.mark.parametrize(("seed", "ties"), [(0, False), (1, True), (2, True), (3, False)])
def test_delong_against_all_pairs(seed: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    positive, negative = random.normal(0.7, 1, 23), random.normal(0, 1, 41)
    if ties:
        positive, negative = positive.round(), negative.round()
    area, variance = slow_delong(positive, negative)
    auc, interval = auroc(positive, negative)
    half = 1.959964 * variance**0.5
    assert auc == pytest.approx(area)
    assert interval == pytest.approx((max(0, area - half), min(1, area + half)))


def test_the_interval_covers_the_true_area_as_often_as_it_says() -> None:
    """Normal scores one apart have an area of Phi(1 / sqrt 2)."""
    random, inside = np.random.default_rng(0), 0
    for _ in range(400):
        _, interval = auroc(random.normal(1, 1, 60), random.normal(0, 1, 80))
        assert interval is not None
        inside += interval[0] <= 0.7602499 <= interval[1]
    assert 0.92 < inside / 400 < 0.975


def test_too_few_images_have_no_figure() -> None:
    score, two = np.ones(1), np.zeros(2)
    assert auroc(score, np.zeros(0)) == (None, None)
    assert auroc(score, two) == (1.0, None)
    assert auroc(np.ones(9), np.zeros(9)) == (1.0, None)
    result = binary_result([[2, 1], [0, 0]], np.array([-1.0, -2.0, 3.0]), np.zeros(3))
    assert (result.auroc, result.sensitivity, result.specificity) == (None, None, pytest.approx(200 / 3))
    part = {"m": network_result() | {"binary": result.model_dump()}}
    assert "AUROC unknown, sensitivity unknown, specificity 66.67 % (" in summary_lines(part)[1]


def network_result() -> dict[str, object]:
    figures = {"top1": 1.0, "top5": 1.0, "top1_interval": (0.0, 2.0), "images": 3, "agreement": None}
    return {**figures, "images_per_second": 1.0, "unreadable": []}


def test_probabilities_are_the_networks(tmp_path: Path) -> None:
    tree(tmp_path, dict.fromkeys("abcdefg", 3))
    _, few = predicted(tmp_path, 7)
    result, arrays = predicted(tmp_path, 7, probabilities=True)
    assert set(few) == {"name", "label", "m", "m_top5_classes", "m_top5_probabilities"}
    assert arrays["m_probabilities"].shape == (21, 7)
    images = open_validation(tmp_path, spec(7))
    for row, name in enumerate(arrays["name"].tolist()):
        index = next(n for n in range(21) if images.name(n) == name)
        pixels = images[index][0]
        assert pixels is not None
        expected = network(7)((pixels[None].float() / 255 - 0.5) / 0.5).softmax(1)[0].tolist()
        order = sorted(range(7), key=lambda k: -expected[k])[:5]
        assert arrays["m_probabilities"][row].tolist() == pytest.approx(expected, rel=1e-4)
        assert arrays["m_top5_classes"][row].tolist() == order
        assert arrays["m_top5_probabilities"][row].tolist() == pytest.approx([expected[k] for k in order], rel=1e-4)
    assert 100 * (arrays["m"] == arrays["label"]).mean() == pytest.approx(result.top1)


def test_the_table_has_a_line_an_image_and_no_formulas(tmp_path: Path) -> None:
    names = {"=1+1": 1, "+a": 1, "-b": 1, "@c": 1, "plain, with comma": 2}
    tree(tmp_path / "val", names)
    _, arrays = predicted(tmp_path / "val", 5)
    save_csv(tmp_path / "p.csv", arrays)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "label", "m_class", "m_confidence"]
    assert len(rows) == 6
    assert not [cell for row in rows for cell in row.values() if cell[0] in "=+-@"]
    for row, name, label, predicted_label, best in zip(
        rows, arrays["name"], arrays["label"], arrays["m"], arrays["m_top5_probabilities"], strict=True
    ):
        assert row["name"].removeprefix("'") == name
        assert (int(row["label"]), int(row["m_class"])) == (label, predicted_label)
        assert float(row["m_confidence"]) == pytest.approx(float(best[0]), abs=1e-6)


def test_places_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ClusterqError, match=r"^predictions_csv: .* is a folder, expected a file to write"):
        need_place("predictions_csv", tmp_path)
    with pytest.raises(ClusterqError, match=r"^predictions: .* lies in .*absent, which is no folder"):
        KeptPredictions(npz=tmp_path / "absent" / "p.npz").need(tmp_path)
    with pytest.raises(ClusterqError, match=r"^probabilities: there is no val, "):
        KeptPredictions(probabilities=True).need(None)


def compare(root: Path, expected: EvaluationResult, file: Path) -> None:
    with process_group():
        result, arrays = predicted(root, 2, probabilities=True)
    timing = {"images_per_second", "decode_seconds", "calibration_error"}
    assert result.model_dump(exclude=timing) == expected.model_dump(exclude=timing)
    with np.load(file) as alone:
        assert set(alone) == set(arrays)
        for name in alone:
            if alone[name].dtype.kind == "f":
                np.testing.assert_allclose(alone[name], arrays[name], rtol=1e-5)
            else:
                np.testing.assert_array_equal(alone[name], arrays[name])


def test_two_processes_find_the_same(tmp_path: Path) -> None:
    """An odd number of images, remarks and an unreadable one among them."""
    root = tree(tmp_path / "val", {"a": 12, "b": 8})
    (root / "b" / "broken.png").write_bytes(b"no image")
    (root / "b" / "notes.txt").write_bytes(b"x")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(root / "a" / "deep.png")
    expected, arrays = predicted(root, 2, probabilities=True)
    assert expected.binary is not None
    assert expected.modes == {"L": 20, "I;16": 1}
    np.savez(tmp_path / "alone.npz", **arrays)
    in_processes(2, compare, root, expected, tmp_path / "alone.npz")
