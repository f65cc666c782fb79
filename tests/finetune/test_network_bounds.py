"""Weights, students, exported files, archives and images that ask for far more than they hold: refused in a sentence, in little time and memory."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clusterq_common.archives.zip_directory import directory_size
from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.description import describe
from clusterq_common.export.onnx_file import onnx_bytes
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import quantizers
from clusterq_common.quant.load import load_quantized
from clusterq_common.run.checkpoint import load_checkpoint, save_weights
from clusterq_common.teacher.spec import Geometry, InputSpec
from clusterq_common.teacher.weights import load_weights, read_checkpoint
from clusterq_finetune.data.preprocess import preprocess
from clusterq_finetune.data.real.cifar import open_cifar
from tests.finetune.export_nets import SPEC, Plain, student_of
from tests.finetune.small_student import prepared, settings, small_net

CIFAR = InputSpec(size=32, channels=3, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
pytestmark = pytest.mark.usefixtures("little_memory")


def test_expanded_tensors_and_giant_shapes_are_compared_before_they_are_read(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    giant = torch.zeros(1).expand(1 << 40)
    for name, sentence in (
        ("0.weight", "misshapen 0.weight is"),
        ("0.more", "unexpected 0.more"),
        ("1.num_batches_tracked", None),
    ):
        torch.save({**net.state_dict(), name: giant}, tmp_path / "w.pt")
        state = read_checkpoint(tmp_path / "w.pt")
        if sentence is None:
            load_weights(net, state, "w.pt")
        else:
            with pytest.raises(ClusterqError, match=sentence):
                load_weights(net, state, "w.pt")
    with pytest.raises(ClusterqError, match=r"not finite, in 0\.bias"):
        load_weights(net, {**net.state_dict(), "0.bias": torch.full((4,), torch.nan)}, "w.pt")
    torch.save({3: torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ClusterqError, match="no state dict of tensors"):
        load_weights(net, read_checkpoint(tmp_path / "w.pt"), "w.pt")


def test_a_packed_weights_file_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    with pytest.raises(ClusterqError, match="is a packed archive"):
        read_checkpoint(tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "plain.pt")["a"].shape == (1 << 20,)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("scale", lambda value: value.fill_(torch.nan), "scale that is not finite"),
        ("scale", lambda value: value.fill_(torch.inf), "scale that is not finite"),
        ("zero_point", lambda value: value.fill_(1 << 30), "integers in .* that its . bits do not hold"),
        (
            "limits",
            lambda value: value.copy_(torch.tensor([-(1 << 30), 1 << 30])),
            "integers in .* that its . bits do not hold",
        ),
        ("weight", lambda value: value.fill_(torch.nan), "values that are not finite"),
        ("running_var", lambda value: value.fill_(-2), "a running variance of -2 in"),
    ],
)
def test_a_student_with_odd_values_is_refused(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], object], sentence: str
) -> None:
    config = settings({"bits": "w4a4"})
    student, _ = prepared(config)
    path = tmp_path / "student.safetensors"
    save_weights(path, student)
    example = torch.zeros(1, 2, 8, 8)
    quant = QuantConfig(bits="w4a4")
    assert quantizers(load_quantized(path, small_net(), quant, example))
    state = load_file(path)
    change(next(value for key, value in state.items() if key.endswith(name) and value.ndim))
    save_file(state, path)
    with pytest.raises(ClusterqError, match=sentence):
        load_quantized(path, small_net(), quant, example)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_long_narrow_images_are_not_blown_up(size: tuple[int, int]) -> None:
    spec = InputSpec(size=224, channels=3, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ValueError, match="after resizing"):
        preprocess(Image.new("RGB", size), spec, Geometry(crop_pct=0.875, interpolation="bilinear"))
    assert preprocess(Image.new("RGB", size), spec, Geometry(crop_pct=None, interpolation="bilinear")).shape == (3, 224, 224)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """An exported student."""
    student, _ = student_of(Plain)
    described = describe(
        "plain",
        QuantConfig(bits="w4a4"),
        Geometry(crop_pct=None, interpolation="bilinear"),
        SPEC,
        clusterq="0",
        teacher="",
        student="",
    )
    return onnx.load_from_string(onnx_bytes(student, SPEC, described, OnnxConfig())[0])


def saying(model: onnx.ModelProto, **changed: str) -> bytes:
    """The same graph with other metadata."""
    values = {item.key: item.value for item in model.metadata_props}
    other = onnx.ModelProto()
    other.CopyFrom(model)
    del other.metadata_props[:]
    onnx.helper.set_model_props(other, {**values, **changed})
    return bytes(other.SerializeToString())


def test_names_in_an_onnx_file_reach_no_terminal(
    model: onnx.ModelProto, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's own log would print them as they are."""
    odd = onnx.ModelProto()
    odd.CopyFrom(model)
    values = onnx.helper.make_tensor("value", onnx.TensorProto.INT64, [1], [12345])
    (taken,) = (node for node in odd.graph.node if odd.graph.output[0].name in node.output)
    inner = f"{taken.output[0]}_before"
    taken.output[0] = inner
    odd.graph.node.append(onnx.helper.make_node("Constant", [], ["to"], value=values))
    odd.graph.node.append(onnx.helper.make_node("Reshape", [inner, "to"], [odd.graph.output[0].name], name="\x1b[31mred"))
    with pytest.raises(ClusterqError, match="cannot be run") as refused:
        OnnxModel(odd.SerializeToString())(torch.zeros(1, SPEC.channels, SPEC.size, SPEC.size))
    assert "\x1b" not in str(refused.value)
    assert "\x1b" not in "".join(capfd.readouterr())


def test_metadata_of_an_onnx_file_must_fit_its_graph(model: onnx.ModelProto) -> None:
    assert OnnxModel(saying(model)).description.input == SPEC
    asked = SPEC.model_dump(mode="json")
    for changed, sentence in (
        ({"input": json.dumps({**asked, "size": 1_000_000})}, "sides must lie between 1 and 4096"),
        ({"input": json.dumps({**asked, "size": SPEC.height + 1})}, "takes images of"),
        ({"input": "[" * 100_000}, "metadata that are no JSON"),
        ({"arch": "{"}, "metadata that are no JSON"),
    ):
        with pytest.raises(ClusterqError, match=sentence):
            OnnxModel(saying(model, **changed))
    other = OnnxModel(saying(model, input=json.dumps({**asked, "num_classes": SPEC.num_classes + 1})))
    with pytest.raises(ClusterqError, match="expected float32 logits of shape"):
        other(SPEC.example())


def test_an_archive_of_a_million_members_is_not_listed(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(2)}, path)
    assert 0 < directory_size(path) < 4096
    large = bytearray(path.read_bytes())
    # torch writes the record of large archives always: its field of the size, before the record's place and the end.
    size = len(large) - 22 - 20 - 56 + 40
    large[size : size + 8] = struct.pack("<Q", 1 << 26)
    path.write_bytes(large)
    assert directory_size(path) == 1 << 26
    with pytest.raises(ClusterqError, match="tens of thousands of members"):
        read_checkpoint(path)
    with pytest.raises(ClusterqError, match="tens of thousands of members"):
        load_checkpoint(path, torch.device("cpu"))
    path.write_bytes(b"PK\5\6")
    assert directory_size(path) == 0


def test_the_directory_of_an_archive_above_four_gigabytes(tmp_path: Path) -> None:
    """Its size stands in a record of its own."""
    path = tmp_path / "large.zip"
    record = struct.pack("<LQHHLLQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 3, 3, 5 << 32, 0)
    path.write_bytes(bytes(100) + record + struct.pack("<LLQL", 0x07064B50, 0, 100, 1) + b"PK\5\6" + b"\xff" * 16 + bytes(2))
    assert directory_size(path) == 5 << 32


def test_a_batch_of_cifar_that_reserves_all_memory(tmp_path: Path) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(b"\x80\x02}r" + struct.pack("<I", 0xFFFFFFFF) + b".")
    with pytest.raises(ClusterqError, match="remembers a value at a place"):
        open_cifar(path, CIFAR)
    values = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    path.write_bytes(pickle.dumps(values, protocol=4))
    assert len(open_cifar(path, CIFAR)) == 2
