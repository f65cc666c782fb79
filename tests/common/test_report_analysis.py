"""Figures of analysis.json, against plain computations."""

import copy
import csv
import math

import pytest
import torch
from torch import Tensor, nn

from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert
from clusterq_common.taps import batchnorm_taps
from clusterq_report.measure.costs import layer_costs
from clusterq_report.measure.features import BatchNormDistances, Scatter
from clusterq_report.measure.layers import quantized_layers
from clusterq_report.pages.layers import Layers, cost_table, costs_csv


@pytest.fixture
def model() -> nn.Module:
    """Two convolutions with BatchNorm; the second one's ReLU works in place on what a hook has seen."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)]
    net = nn.Sequential(*layers, nn.Conv2d(6, 5, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(80, 3)).eval()
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.num_features)
            layer.running_var = torch.rand(layer.num_features) + 0.1
    return net


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_distances_of_batchnorm_statistics(model: nn.Sequential, images: Tensor) -> None:
    distances = BatchNormDistances(model)
    with batchnorm_taps(model) as taps:
        for batch in images.split(5):
            model(batch)
            distances.add(taps)
    distance = distances.result()
    assert [row["layer"] for row in distance] == ["1", "4"]
    x = images
    for index, layer in enumerate(model[:5]):
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            scale = (layer.running_var + layer.eps).sqrt()
            mean = ((x.mean((0, 2, 3)) - layer.running_mean) / scale).square().mean().sqrt()
            std = ((x.var((0, 2, 3), correction=0) + layer.eps).sqrt() / scale - 1).abs().mean()
            row = distance[0 if index == 1 else 1]
            assert (row["mean"], row["std"]) == pytest.approx((float(mean), float(std)), rel=1e-4)
        x = layer(x)


@torch.no_grad()
def test_scatter_between_and_within_classes(model: nn.Sequential, images: Tensor) -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 2, 2, 2, 7, 7, 7, 7])
    scatter, distances = Scatter(labels), BatchNormDistances(model)
    with batchnorm_taps(model) as taps:
        for batch in images.split(5):
            model(batch)
            scatter.add(taps)
    (first, _) = scatter.result(distances.scales)
    values = model[0](images).mean((2, 3)).double() / distances.scales["1"]
    groups = [values[labels == label] for label in (0, 2, 7)]
    within = sum((group - group.mean(0)).square().sum(0) for group in groups) / (12 - 3)
    between = sum(len(group) * (group.mean(0) - values.mean(0)).square() for group in groups) / (3 - 1)
    each = (12 - sum(len(group) ** 2 for group in groups) / 12) / (3 - 1)
    assert first["within"] == pytest.approx(float(within.mean()), rel=1e-4)
    assert first["between"] == pytest.approx(float(((between - within) / each).clamp_min(0).mean()), rel=1e-4)
    assert Scatter(torch.tensor([1, 1])).result({}) == [], "one class"
    assert Scatter(torch.tensor([1, 2])).result({}) == [], "one image of each"


def test_few_images_do_not_pass_for_distance_between_classes() -> None:
    """Pure noise: a naive variance of class means would see a quarter of the noise."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(200).repeat_interleave(4)
    scatter = Scatter(labels)
    scatter._rows["a"] = [torch.randn(800, 50, generator=random, dtype=torch.float64)]
    (row,) = scatter.result({"a": torch.ones(50)})
    assert row["within"] == pytest.approx(1, abs=0.02)
    assert row["between"] < 0.02


@torch.no_grad()
@pytest.mark.parametrize("quantizer", ["symmetric", "asymmetric"])
def test_errors_by_layer(model: nn.Sequential, images: Tensor, quantizer: str) -> None:
    config = QuantConfig.validated({"bits": "w3a3", "quantizer": quantizer, "range": "mse"})
    student = convert(model, config, images[:1], lambda _: None).eval()
    calibrate(student, [images], config, seed=0)
    student[0].weight.mul_(1.3)
    before = copy.deepcopy(student.state_dict())
    layers = quantized_layers(model, student, iter(images.split(5)), images[:1])
    assert not any(module._forward_hooks for module in [*model.modules(), *student.modules()])
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())

    def decibel(reference: Tensor, other: Tensor) -> float:
        return 10 * math.log10(float(reference.square().sum() / (reference - other).square().sum()))

    assert [row["layer"] for row in layers["outputs"]] == ["0", "3", "5", "8"]
    for row in layers["outputs"]:
        part = int(row["layer"]) + 1
        assert row["sqnr"] == pytest.approx(decibel(model[:part](images), student[:part](images)), abs=1e-3)
    site = layers["activations"][1]
    x = student[:3](images)
    quantized = student[3].input_quantizer(x)
    assert (site["site"], site["bits"]) == ("3", 3)
    assert site["sqnr"] == pytest.approx(decibel(x, quantized), abs=1e-3)
    assert (site["seen_low"], site["seen_high"]) == pytest.approx((float(x.min()), float(x.max())))
    assert (site["low"], site["high"]) == pytest.approx((float(quantized.min()), float(quantized.max())), abs=1e-6)
    integers = student[3].input_quantizer.to_int(x)
    unclamped = torch.round(x / integers.scale) + integers.zero_point
    assert site["clipped"] == pytest.approx(float((unclamped != integers.integers).float().mean()), abs=1e-6)
    weights = layers["weights"][0]
    layer = student[0]
    assert weights["sqnr"] == pytest.approx(decibel(layer.weight, layer.weight_quantizer(layer.weight)), abs=1e-3)
    assert weights["sqnr_teacher"] == pytest.approx(decibel(model[0].weight, layer.weight_quantizer(layer.weight)), abs=1e-3)
    assert sum(weights["student"]) == pytest.approx(1)
    assert sum(weights["teacher"]) == pytest.approx(1)


@torch.no_grad()
def test_weights_on_their_grid_stand_on_its_points(model: nn.Sequential, images: Tensor) -> None:
    config = QuantConfig.validated({"bits": "w2a8", "range": "mse"})
    student = convert(model, config, images[:1], lambda _: None).eval()
    calibrate(student, [images], config, seed=0)
    student[0].weight.copy_(student[0].weight_quantizer(student[0].weight))
    row = quantized_layers(model, student, iter([images]), images[:1])["weights"][0]
    assert row["sqnr"] is None, "there is nothing left to round"
    assert row["clipped"] == 0
    per_step = len(row["student"]) / (row["high"] - row["low"] + 2)
    integers = student[0].weight_quantizer.to_int(student[0].weight).integers
    for value in range(row["low"], row["high"] + 1):
        place = round((value - row["low"] + 1) * per_step)
        assert row["student"][place] == pytest.approx(float((integers == value).float().mean()), abs=1e-6)


@torch.no_grad()
def test_a_float_student_has_no_errors(model: nn.Sequential, images: Tensor) -> None:
    student = convert(model, QuantConfig.validated({"bits": "w32a32"}), images[:1], lambda _: None).eval()
    layers = quantized_layers(model, student, iter([images]), images[:1])
    assert [row["sqnr"] for row in layers["outputs"]] == [None] * 4
    assert layers["activations"] == layers["weights"] == []


class Branches(nn.Module):
    """A grouped convolution that runs twice, a BatchNorm before any convolution, and two after the last."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.twice = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.wide, self.norm = nn.Conv2d(4, 6, (3, 1), stride=(2, 1)), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.start(x)))
        x = self.norm(self.norm(self.wide(x)))
        return self.head(x.mean((2, 3)))


def test_costs_are_those_of_a_plain_count() -> None:
    rows = layer_costs(Branches().eval(), torch.zeros(1, 4, 9, 7))
    assert [row["layer"] for row in rows] == ["twice", "wide", "head"]
    assert [row["kind"] for row in rows] == ["Conv2d", "Conv2d", "Linear"]
    assert [row["weights"] for row in rows] == [4 * 2 * 9, 6 * 4 * 3, 30]
    # Values of the output, times inputs of each: twice 4 x 9 x 7 values of 2 x 3 x 3; 6 x 4 x 7 of 4 x 3 x 1; 5 of 6.
    assert [row["multiply_adds"] for row in rows] == [2 * 252 * 18, 168 * 12, 30]
    assert [row["batchnorm"] for row in rows] == [["start"], ["norm"], []]
    assert layer_costs(Branches().eval(), torch.zeros(3, 4, 9, 7)) == rows, "for one image, however many there are"


def test_layers_have_one_numbering_and_a_table_for_spreadsheets() -> None:
    names = ["features.conv", "=1+1", "head"]
    costed = [
        {"layer": name, "kind": "Conv2d", "weights": 10, "multiply_adds": 640, "batchnorm": [f"{name}.bn"]} for name in names
    ]
    weights = [{"layer": name, "bits": 3, "sqnr_teacher": 12.5, "sqnr": None, "clipped": 0.0} for name in names[:2]]
    outputs = [{"layer": name, "sqnr": 20.0} for name in names]
    layers = Layers({"layers": costed, "outputs": outputs, "weights": weights, "activations": []})
    assert layers.label("features.conv.bn") == "1 (features.conv.bn)"
    assert layers.label("elsewhere") == "elsewhere"
    assert layers.places(["head", "=1+1.bn"]) == [3, 2]
    assert layers.places(["head", "elsewhere"]) == [1, 2], "in order where one has no number"
    assert layers.stored_bytes() == (4 + 4 + 40, 120), "the last layer stayed in float32"
    header, first, second, third = list(csv.reader(costs_csv(layers).splitlines()))
    assert header[:8] == ["number", "layer", "kind", "weights", "multiply_adds", "weight_bits", "input_bits", "weight_bytes"]
    assert first == ["1", "features.conv", "Conv2d", "10", "640", "3", "", "4", "20", "12.5", "", "", "0", ""]
    assert second[1] == "'=1+1", "no spreadsheet takes a layer for a formula"
    assert third[5:8] == ["32", "", "40"]
    assert costs_csv(Layers({})) == ""
    assert cost_table(Layers({}), "layers.csv") == []
