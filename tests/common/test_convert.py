"""From a model to a student: what is quantized, what is not, and that nothing else changes."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorchcv.model_provider import get_model
from safetensors.torch import load_file
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert, parameters_by_kind, quantizers
from clusterq_common.quant.modules import QuantConv2d, QuantLinear
from clusterq_common.quant.structure import float_layers, quantizable_layers, residual_branches
from tests.networks import replaced_method


class OddOrder(nn.Module):
    """Registers its layers in another order than it runs them; has one that is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.late = nn.Conv2d(4, 8, 3, groups=2, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.early = nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.late(self.early(x)))).mean((2, 3)))


def quiet(_: str) -> None:
    """Where summaries go that no test looks at."""


def converted(model: nn.Module, size: int = 32, channels: int = 3, **settings: object) -> nn.Module:
    return convert(model, QuantConfig(**settings), torch.zeros(1, channels, size, size), quiet)


def bits(student: nn.Module) -> dict[str, int]:
    return {name: quantizer.bits for name, quantizer in quantizers(student).items()}


def test_teacher_is_untouched_and_names_are_kept() -> None:
    torch.manual_seed(0)
    model = OddOrder().eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 2, 12, 12)
    expected = model(x)
    student = converted(model, 12, 2, bits="w8a8")
    calibrate(student, [x], QuantConfig(bits="w8a8"))
    student(x).sum().backward()
    assert torch.equal(model(x), expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert set(model.state_dict()) <= set(student.state_dict())
    assert {n for n, _ in model.named_modules()} <= {n for n, _ in student.named_modules()}
    assert isinstance(student.late, QuantConv2d)
    assert student.late.groups == 2
    assert isinstance(student.head, QuantLinear)
    assert type(student.unused) is nn.Linear
    torch.testing.assert_close(student(x), expected, rtol=0.1, atol=0.05)


def test_first_and_last_are_those_that_run_first_and_last() -> None:
    widths = bits(converted(OddOrder(), 12, 2, bits="w3a4"))
    assert widths == {
        "early.weight_quantizer": 3,
        "early.input_quantizer": 8,  # the image has eight bits
        "late.weight_quantizer": 3,
        "late.input_quantizer": 4,
        "head.weight_quantizer": 3,
        "head.input_quantizer": 4,
    }
    ends = bits(converted(OddOrder(), 12, 2, bits="w3a4", first_last_bits=8))
    assert ends["early.weight_quantizer"] == ends["head.weight_quantizer"] == ends["head.input_quantizer"] == 8
    assert ends["late.weight_quantizer"] == 3


def test_32_bits_are_off() -> None:
    model = OddOrder().eval()
    plain = converted(model, 12, 2, bits="w32a32")
    assert not bits(plain)
    x = torch.randn(2, 2, 12, 12)
    assert torch.equal(plain(x), model(x))
    assert all("weight" in name for name in bits(converted(model, 12, 2, bits="w4a32")))
    assert all("input" in name for name in bits(converted(model, 12, 2, bits="w32a4")))


def test_linear_bottlenecks_are_quantized() -> None:
    """MobileNetV2 feeds the output of a linear layer, no ReLU, into the next unit."""
    model = get_model("mobilenetv2_wd4").eval()
    student = converted(model, 224)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert {f"{name}.input_quantizer" for name in layers} <= set(bits(student))
    assert {f"{name}.weight_quantizer" for name in layers} <= set(bits(student))
    x = torch.randn(2, 3, 224, 224)
    calibrate(student, [x], QuantConfig())
    signed = {name for name, q in quantizers(student).items() if "input" in name and q.grid.signed}
    assert "features.stage2.unit1.conv1.conv.input_quantizer" in signed, "a bottleneck's output has negative values"
    depthwise = [name for name, module in student.named_modules() if isinstance(module, QuantConv2d) and module.groups > 1]
    assert depthwise
    assert torch.isfinite(student(x)).all()


def test_relu_sites_quantize_relu_outputs_only() -> None:
    model = get_model("resnet20_cifar10").eval()
    widths = bits(converted(model, activation_sites="relu"))
    relus = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    assert {name for name in widths if "weight" not in name} == {f"{name}.output_quantizer" for name in relus}
    with pytest.raises(ClusterqError, match="no ReLU"):
        converted(OddOrder(), 12, 2, activation_sites="relu")


def test_branch_outputs_are_what_feeds_the_additions() -> None:
    model = get_model("resnet20_cifar10").eval()
    branches = residual_branches(model, torch.zeros(1, 3, 32, 32))
    assert "features.stage1.unit1.body.conv2.bn" in branches
    assert "features.stage2.unit1.identity_conv.bn" in branches
    assert len(branches) == 9 + 2
    config = QuantConfig(branch_outputs=True)
    student = converted(model, branch_outputs=True)
    assert {f"{name}.output_quantizer" for name in branches} <= set(bits(student))
    calibrate(student, [torch.randn(2, 3, 32, 32)], config)
    assert torch.isfinite(student(torch.randn(2, 3, 32, 32))).all()
    assert not [name for name in bits(converted(model)) if "output_quantizer" in name], "off by default"


class NormWithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def __init__(self, channels: int, *, act: bool) -> None:
        super().__init__(channels)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(x))


class OddUnit(nn.Module):
    """Two branches, code that torch.fx cannot trace, and an activation in place on one of them."""

    def __init__(self, *, act: bool, inplace: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, 1, 1), NormWithActivation(4, act=act)
        self.short, self.short_norm, self.inplace = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % 2:
            x = nn.functional.pad(x, (0, 1, 0, 1))
        short = self.short_norm(self.short(x))
        if self.inplace:
            short = short.relu_()
        return self.norm(self.conv(x)) + short + 1.0


@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_branches_are_found_by_what_flows(act: bool, inplace: bool) -> None:
    model = nn.Sequential(OddUnit(act=act, inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.randn(2, 4, 7, 7)
    branches = residual_branches(model, x)
    assert branches == (["0.norm"] if inplace else ["0.norm", "0.short_norm"])
    student = convert(model, QuantConfig(bits="w8a8", branch_outputs=True), x)
    calibrate(student, [x], QuantConfig(bits="w8a8"))
    # The layer's own forward, activation included, still runs.
    assert torch.allclose(student(x), model(x), atol=0.05 * float(model(x).abs().max()))
    assert student.get_submodule("0.norm.output_quantizer") is not None
    assert list(copy.deepcopy(student).state_dict()) == list(student.state_dict())


def test_no_branch_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    convert(OddOrder().eval(), QuantConfig(branch_outputs=True), torch.zeros(1, 2, 12, 12), print)
    assert "no residual-branch outputs" in capsys.readouterr().out


def test_summary_says_what_was_quantized_and_what_not(capsys: pytest.CaptureFixture[str]) -> None:
    body = OddOrder()
    body.extra = nn.Embedding(3, 3)
    convert(body.eval(), QuantConfig(), torch.zeros(1, 2, 12, 12), print)
    printed = capsys.readouterr().out
    assert "quantized 3 layers to w4a4" in printed
    assert "extra (Embedding)" in printed


def test_calibration_needs_images_and_finite_values() -> None:
    student = converted(OddOrder(), 12, 2)
    with pytest.raises(ClusterqError, match="no image"):
        calibrate(student, [], QuantConfig())
    with pytest.raises(ClusterqError, match="not finite"):
        calibrate(student, [torch.full((1, 2, 12, 12), torch.nan)], QuantConfig())
    assert all(quantizer.observer is None for quantizer in quantizers(student).values())


def test_learned_scales_are_parameters_apart() -> None:
    weights, scales = parameters_by_kind(converted(OddOrder(), 12, 2, range="lsq"))
    assert len(scales) == 6, "of the inputs and the weights of three layers"
    assert len(parameters_by_kind(converted(OddOrder(), 12, 2, range="lsq", weight_steps="fixed"))[1]) == 3
    assert len(parameters_by_kind(converted(OddOrder(), 12, 2, range="mse", weight_steps="learned"))[1]) == 3
    assert not {id(scale) for scale in scales} & {id(weight) for weight in weights}
    assert not parameters_by_kind(converted(OddOrder(), 12, 2, range="mse"))[1]


@pytest.mark.real
def test_w8a8_of_a_trained_model_stays_with_it(real_data: Path, cifar_subset: Callable[[int], tuple[Tensor, Tensor]]) -> None:
    model = get_model("resnet20_cifar10").eval()
    model.load_state_dict(load_file(real_data / "models" / "resnet20_cifar10.safetensors"))
    images, labels = cifar_subset(100)
    mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:256]
    config = QuantConfig(bits="w8a8")
    student = converted(model, bits="w8a8")
    calibrate(student, images[mixed].split(64), config)
    with torch.no_grad():
        teacher = (model(images).argmax(1) == labels).float().mean()
        accuracy = (student(images).argmax(1) == labels).float().mean()
    assert teacher > 0.9
    assert teacher - accuracy <= 0.003


def test_a_method_of_a_layers_own_is_never_replaced() -> None:
    """It may compute anything: its layer stays in float and is named."""
    torch.manual_seed(0)
    model, example = replaced_method().eval(), torch.zeros(1, 3, 32, 32)
    assert quantizable_layers(model, example) == ["body.0.0", "head.2"]
    assert float_layers(model) == ["body.1.0 (Conv2d)"]


def test_ranges_that_are_not_searched_are_the_largest_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False)).eval()
    example = torch.zeros(1, 1, 5, 5)
    lines: dict[bool, list[str]] = {True: [], False: []}
    students = {
        search: convert(model, QuantConfig(bits="w3a3"), example, lines[search].append, search=search) for search in lines
    }
    assert lines[True] == lines[False], "what is said of a student is the same"
    scales = {search: quantizers(student)["0.weight_quantizer"].scale for search, student in students.items()}
    largest = model[0].weight.detach().abs().amax((1, 2, 3))
    assert torch.allclose(scales[False].detach().flatten() * 3, largest, rtol=0.2)
    assert (scales[True] <= scales[False]).all()
    assert not torch.equal(scales[True], scales[False])
