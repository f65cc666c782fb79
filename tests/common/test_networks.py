"""Kinds of networks as people have them: each works, or a sentence says why not; docs/networks.md has the table."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert
from clusterq_common.quant.share import quantized_share
from clusterq_common.setting_names import settings_spelled_by
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from tests.conftest import ROOT
from tests.networks import NETWORKS, SIZES, Plain

PAGE = ROOT / "docs" / "networks.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def spec_of(kind: str) -> InputSpec:
    channels, classes = SIZES.get(kind, (3, 5))
    return InputSpec(size=32, channels=channels, num_classes=classes, mean=(0.5,) * channels, std=(0.25,) * channels)


def built(kind: str) -> nn.Module:
    """A network whose BatchNorm has seen something."""
    spec = spec_of(kind)
    torch.manual_seed(0)
    model: nn.Module = NETWORKS[kind]()
    kwargs: dict[str, Any] = {"age": torch.zeros(1)} if kind == "two inputs" else {}
    dtype = torch.float16 if kind.startswith("float16") else torch.float32
    with torch.no_grad():
        model.train()(torch.randn(8, spec.channels, 32, 32).to(dtype), **kwargs)
    return model.eval()


def images(spec: InputSpec, count: int = 4) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return normalise(torch.randint(256, (count, spec.channels, 32, 32), generator=random, dtype=torch.uint8), spec)


def row(kind: str) -> str:
    """Make the page's row for a kind by trying it: load, convert to W8A8, and compare with the network."""
    spec = spec_of(kind)
    model = built(kind)
    try:
        from clusterq_common.teacher.load import _prepare

        remarks = _prepare(model, spec, "net.py:net")
        log: list[str] = []
        student = convert(model, QuantConfig(bits="w8a8"), spec.example(), log.append).eval()
    except ClusterqError as refusal:
        return f"| {kind} | refused | {str(refusal).replace('|', '/')} |"
    seen = images(spec).contiguous(memory_format=torch.channels_last)
    calibrate(student, [seen], QuantConfig(bits="w8a8"))
    with torch.no_grad():
        logits, low = model(seen), student(seen)
    assert logits.shape == (4, spec.num_classes)
    assert float((logits - low).abs().max()) < 0.1 * float(logits.abs().max()), kind
    share = next(line.strip() for line in log if "multiply-adds" in line)
    return f"| {kind} | works | {'; '.join([*(remark.text for remark in remarks), share]).replace('|', '/')} |"


def test_the_page_says_what_happens() -> None:
    with settings_spelled_by(lambda name, _: f"--{name.replace('_', '-')}"):  # as the command line does
        rows = [row(kind) for kind in NETWORKS]
    table = "\n".join(["| kind | | what clusterq says |", "|---|---|---|", *rows]) + "\n"
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    told, after = rest.split(END)
    if os.environ.get("CLUSTERQ_WRITE_TABLE"):
        PAGE.write_text(before + BEGIN + table + END + after, encoding="utf-8")
    else:
        assert told == table, "CLUSTERQ_WRITE_TABLE=1 pytest tests/common/test_networks.py writes it anew"


@pytest.mark.parametrize(
    "kind", [kind for kind in NETWORKS if "norm, " in kind or kind in {"pruned weights", "float16 weights"}]
)
def test_changed_weights_are_plain_afterwards_and_answer_alike(kind: str) -> None:
    model, spec = built(kind), spec_of(kind)
    with torch.no_grad():
        wanted = copy.deepcopy(model).float()(images(spec)) if kind.startswith("float16") else model(images(spec))
        teacher = Teacher.of(model, spec)
        assert torch.allclose(teacher.model(images(spec)), wanted, atol=1e-4)
    assert not any("original" in name or name.endswith(("_g", "_v", "_orig", "_mask")) for name in teacher.model.state_dict())
    student = convert(teacher.model, QuantConfig(bits="w4a4"), spec.example())
    # A hook left behind would put the old weight back, whatever is learned.
    assert all(
        "weight" in dict(layer.named_parameters(recurse=False)) for layer in student.modules() if isinstance(layer, nn.Conv2d)
    )


def test_a_student_of_a_network_with_another_output_keeps_names_and_trains() -> None:
    model, spec = built("output: a dict with `logits`"), spec_of("output: a dict with `logits`")
    names = list(model.state_dict())
    teacher = Teacher.of(model, spec)
    assert list(teacher.model.state_dict()) == names
    student = convert(teacher.model, QuantConfig(bits="w4a4"), spec.example())
    calibrate(student, [images(spec)], QuantConfig(bits="w4a4"))
    student(images(spec)).square().sum().backward()
    assert all(p.grad is not None for name, p in student.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("kind", ["`x.view(x.size(0), -1)` behind a convolution", "strided 1x1 convolution on the image"])
def test_memory_stays_contiguous_where_channels_last_fails(kind: str) -> None:
    spec = spec_of(kind)
    model = Teacher.of(built(kind), spec).model
    seen = images(spec).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.allclose(model(seen), built(kind)(images(spec)), atol=1e-5)


FACTORY = """
import sys
sys.path.insert(0, {root!r})
from tests.networks import NETWORKS
def net():
    return NETWORKS[{kind!r}]()
"""


def loaded(tmp_path: Path, kind: str) -> Teacher:
    """Through a factory and a weights file, as a stranger's."""
    factory, weights = tmp_path / "net.py", tmp_path / "net.pth"
    factory.write_text(FACTORY.format(root=str(ROOT), kind=kind))
    torch.save(built(kind).state_dict(), weights)
    channels, classes = SIZES.get(kind, (3, 5))
    sizes = {
        "input_size": 32,
        "in_channels": channels,
        "num_classes": classes,
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
    }
    return load_teacher(TeacherConfig(arch=f"{factory}:net", weights=str(weights), **sizes))


@pytest.mark.parametrize("kind", ["weight norm, new style", "weight norm, old style", "lazy layers", "float16 weights"])
def test_weights_are_loaded_before_anything_is_folded(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind)
    with torch.no_grad():
        wanted = built(kind).float()(images(spec))
        assert torch.allclose(loaded(tmp_path, kind).model(images(spec)), wanted, atol=1e-4)


def test_statistics_of_fresh_layers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = "convolutions with BatchNorm"
    factory, weights = tmp_path / "net.py", tmp_path / "fresh.pth"
    factory.write_text(FACTORY.format(root=str(ROOT), kind=kind))
    torch.save(Plain().state_dict(), weights)
    config = TeacherConfig(arch=f"{factory}:net", input_size=32, in_channels=3, num_classes=5, mean=(0.5,) * 3, std=(0.25,) * 3)
    load_teacher(config.model_copy(update={"weights": str(weights)}))
    assert "2 of 2 BatchNorm layers have the statistics of fresh ones" in capsys.readouterr().err
    loaded(tmp_path, kind)
    assert "fresh ones" not in capsys.readouterr().err


def test_normalisation_for_0_to_255_is_refused() -> None:
    with pytest.raises(ClusterqError, match=r"pixels in 0\.\.255.*divide both by 255"):
        InputSpec.validated({"size": 32, "channels": 3, "num_classes": 5, "mean": "123.7,116.3,103.5", "std": "58.4,57.1,57.4"})


def test_multiply_adds_are_counted_by_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 4, 1), nn.Flatten(), nn.Linear(256, 5))
    # 8x8 outputs: 27 * 8 * 64 + 8 * 4 * 64 + 256 * 5 products.
    share, left = quantized_share(model, ["0", "3"], torch.zeros(1, 3, 8, 8))
    assert share == pytest.approx((27 * 8 * 64 + 256 * 5) / (27 * 8 * 64 + 8 * 4 * 64 + 256 * 5))
    assert left == ["1 (12 %)"]
