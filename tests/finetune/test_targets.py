"""Targets: their table, what they refuse, and what the files made for them are like."""

from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from PIL import Image
from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.description import describe
from clusterq_common.export.for_target import (
    file_for,
    format_for,
    quant_for,
    refuse_student,
    slower_settings,
    stored_wider,
    target_help,
)
from clusterq_common.export.onnx_file import onnx_bytes, onnx_model
from clusterq_common.export.openvino_model import openvino_core
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.export.targets import TARGETS, TargetName
from clusterq_common.images.normalise import normalise
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import quantizers
from clusterq_common.teacher.spec import Geometry
from clusterq_finetune.data.preprocess import describe_preprocessing, preprocess
from tests.finetune.export_nets import SPEC, Plain, Residual, student_of

ONNX_TARGETS = [name for name, target in TARGETS.items() if "onnx" in target.formats]
CROPPED = Geometry(crop_pct=0.8, interpolation="bicubic")
WHOLE = Geometry(crop_pct=None, interpolation="bilinear")


class Depthwise(nn.Module):
    """A stem, a depthwise and a pointwise convolution, and a residual addition, as in MobileNetV2; ReLU6, as there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.pointwise = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.more = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.last = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)
        for convolution in (self.stem[0], self.depthwise[0], self.pointwise[0], self.more[0]):
            # The furthest weight of each channel is negative: it gets the lowest integer.
            with torch.no_grad():
                convolution.weight.copy_(-convolution.weight.abs())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pointwise(self.depthwise(self.stem(x)))
        return self.head(self.last(torch.relu(x + self.more(x))).mean((2, 3)))


def test_the_table_names_settings_with_values_reasons_and_sources() -> None:
    assert set(TARGETS) == set(get_args(TargetName))
    for name, target in TARGETS.items():
        for settings, choices in ((QuantConfig, target.quant), (OnnxConfig, target.file)):
            settings.validated({setting: choice.value for setting, choice in choices.items()})
            for choice in choices.values():
                assert choice.why.endswith(".")
                assert choice.source
                assert not choice.only or choice.value in choice.only
        assert f"{name}: {target.runtime}, " in target_help()
        assert ("untested" in target.status) == (not target.checked)


def test_flags_stand_above_a_target_unless_it_cannot_run_them() -> None:
    assert quant_for("ort-cpu", {"bits": "w8a8"}) == {
        "branch_outputs": True,
        "around_activations": True,
        "residual_sums": True,
        "narrow_weights": True,
        "bits": "w8a8",
    }
    assert quant_for("ort-cpu", {"branch_outputs": False})["branch_outputs"] is False
    assert file_for("qnn", {"fixed_batch": 4})["fixed_batch"] == 4
    assert format_for(None, None) == "onnx"
    assert format_for("executorch", None) == "pt2"
    for call, words in (
        (
            lambda: quant_for("tensorrt", {"bits": "w8a8", "quantizer": "asymmetric"}),
            "quantizer: asymmetric .*expected symmetric",
        ),
        (lambda: quant_for("tensorrt", {"bits": "w8a8", "signed": False}), "signed: off .*expected on"),
        (lambda: quant_for("qnn", {"bits": "w4a4"}), "bits: activations of 4 bits .*expected 8"),
        (lambda: quant_for("qnn", {"bits": "w8a8", "layer_bits": ("a=w8a6",)}), "layer_bits: activations of 6 bits"),
        (lambda: file_for("tensorrt", {"batchnorm": "fold-all"}), "batchnorm: fold-all does not run on NVIDIA TensorRT"),
        (lambda: format_for("executorch", "onnx"), "format: onnx is no file for ExecuTorch"),
    ):
        with pytest.raises(ClusterqError, match=words):
            call()


def test_students_that_a_target_cannot_run() -> None:
    with pytest.raises(ClusterqError, match=r"made with signed off, which NVIDIA TensorRT does not run .*target=tensorrt"):
        refuse_student("tensorrt", QuantConfig(bits="w8a8", narrow_weights=True), [8], OnnxConfig(integers="int8"))
    with pytest.raises(ClusterqError, match=r"packed stores weights of 2 bits in a type of 2 bits, .*expected int4 or int8"):
        refuse_student("openvino", QuantConfig(bits="w2a8"), [8, 2], OnnxConfig())
    refuse_student("openvino", QuantConfig(bits="w2a8"), [8, 2], OnnxConfig(integers="int4"))
    sentences = slower_settings("ort-cpu", QuantConfig(bits="w8a8", narrow_weights=True))
    for sentence, name in zip(sentences, ("branch_outputs", "residual_sums"), strict=True):
        assert sentence.startswith(f"{name} is off, for target=ort-cpu better on")


@pytest.mark.parametrize("name", ONNX_TARGETS)
def test_files_for_each_target(name: TargetName) -> None:
    """Types, zero-points and shapes are those of the table, and the file computes what the student does."""
    student, images = student_of(Depthwise, **quant_for(name, {"bits": "w8a8"}))
    model, _, clipped = onnx_model(student, SPEC, OnnxConfig(**file_for(name, {})))
    assert not clipped, "narrow grids have all negatives"
    producers = {output: node for node in model.graph.node for output in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    quantizing = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    types = {stored[node.input[2]].data_type for node in quantizing}
    points = {int(numpy_helper.to_array(stored[node.input[2]])) for node in quantizing}
    weights = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    assert all(len(node.input) == 2 for node in weights), "no zero-points among weights"
    assert {stored[node.input[0]].data_type for node in weights} == {TensorProto.INT8}
    assert not any(
        producers[node.input[0]].op_type == "Clip"
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in producers
    )
    unsigned = {TensorProto.UINT8}
    assert types <= {"tensorrt": {TensorProto.INT8}, "qnn": unsigned, "ort-cpu": unsigned}.get(
        name, {TensorProto.INT8, TensorProto.UINT8}
    )
    assert points <= ({0, 128} if types == unsigned else {0})
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (axis.dim_value, axis.dim_param) == ((1, "") if name == "qnn" else (0, "batch"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(None, {"image": image[None].numpy()})[0] for image in images])
    with torch.no_grad():
        expected = student(images)
    assert float((torch.from_numpy(logits) - expected).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.parametrize("narrow", [False, True])
def test_negative_gammas_leave_every_convolution_its_integer_kernel(narrow: bool, tmp_path: Path) -> None:
    """A depthwise convolution before a negative gamma: no BatchNorm left, no zero-point, and integer kernels throughout."""
    settings = {**quant_for("ort-cpu", {"bits": "w8a8"}), "narrow_weights": narrow}
    student, images = student_of(Depthwise, **settings)
    folded = OnnxConfig(**file_for("ort-cpu", {}))
    model, kept, clipped = onnx_model(student, SPEC, folded)
    assert not kept
    assert bool(clipped) != narrow
    kinds = Counter(node.op_type for node in _optimised(model, tmp_path).graph.node)
    # The last one's output goes to a mean, which nothing quantizes.
    assert (kinds["QLinearConv"], kinds["Conv"] + kinds["FusedConv"]) == (4, 1)
    assert (kinds["QLinearAdd"], kinds["BatchNormalization"]) == (1, 0)
    stored = {tensor.name for tensor in model.graph.initializer}
    dequantizing = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    assert all(len(node.input) == 2 for node in dequantizing)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = student(images)
    logits = torch.from_numpy(session.run(None, {"image": images.numpy()})[0])
    assert float((logits - expected).abs().max()) < 0.05 * float(expected.abs().max())
    if not narrow:
        # The other ways: a layer in float, or a zero-point among the weights.
        assert onnx_model(student, SPEC, OnnxConfig()).batchnorm_kept
        other = onnx_model(student, SPEC, OnnxConfig(batchnorm="fold-all")).model
        assert any(
            len(node.input) == 3 for node in other.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored
        )


def test_clipped_weights_are_counted_and_one_step_off() -> None:
    student, _ = student_of(Depthwise, bits="w8a8")
    exact = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx_model(student, SPEC, OnnxConfig(batchnorm="keep")).model.graph.initializer
    }
    model, _, clipped = onnx_model(student, SPEC, OnnxConfig(batchnorm="fold-clip"))
    for tensor in model.graph.initializer:
        if tensor.name in exact and tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4:
            before, after = exact[tensor.name].astype(int), numpy_helper.to_array(tensor).astype(int)
            apart = np.minimum(np.abs(before - after), np.abs(before + after))
            assert apart.max() <= 1
            assert int(apart.sum()) == clipped.get(tensor.name, 0)
    assert sum(clipped.values()) > 0


@pytest.mark.parametrize(("pixels", "fixed", "geometry"), [(False, None, CROPPED), (True, None, CROPPED), (True, 5, WHOLE)])
def test_a_file_says_how_it_is_run(
    pixels: bool,
    fixed: int | None,
    geometry: Geometry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its doc string is a program that names the class that clusterq's own evaluation names."""
    student, _ = student_of(Plain, bits="w8a8")
    about = describe(
        "net",
        QuantConfig(bits="w8a8"),
        geometry,
        SPEC,
        clusterq="1",
        teacher="",
        student="",
        preprocessing=describe_preprocessing(SPEC, geometry),
    )
    about = about.model_copy(update={"class_names": tuple(f"class {number}" for number in range(10))})
    data, about = onnx_bytes(student, SPEC, about, OnnxConfig(with_preprocessing=pixels, fixed_batch=fixed))
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(data)
    noise = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photograph.jpg")
    model = OnnxModel(Path("model.onnx"))
    assert (model.description.colour, model.description.with_preprocessing, model.description.fixed_batch) == (
        "RGB",
        pixels,
        fixed,
    )
    images = normalise(preprocess(Image.open("photograph.jpg"), SPEC, geometry)[None], SPEC)
    with torch.no_grad():
        expected = student(images)
    logits = model(images)
    assert float((logits - expected).abs().max()) < 0.02 * float(expected.abs().max())
    text = onnx.load("model.onnx").doc_string
    assert describe_preprocessing(SPEC, geometry) in text.splitlines()[0]
    program = text.partition("\n\n")[2]
    assert len(program.splitlines()) <= 15
    names: dict[str, object] = {}
    exec(compile(program, "doc_string", "exec"), names)
    assert capsys.readouterr().out.strip() == f"class {int(logits.argmax())}"
    assert np.allclose(names["logits"][0], logits[0].numpy(), atol=1e-5)


def test_unsigned_activations_are_the_same_integers() -> None:
    student, images = student_of(Residual, bits="w8a8", branch_outputs=True, signed=True)
    assert all(quantizer.grid.low < 0 for quantizer in quantizers(student).values())
    logits = []
    for types in ("own", "unsigned"):
        model, *_ = onnx_model(student, SPEC, OnnxConfig(activation_types=types))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        logits.append(session.run(None, {"image": images.numpy()})[0])
        kinds = {tensor.data_type for tensor in model.graph.initializer} & {TensorProto.UINT8}
        assert bool(kinds) == (types == "unsigned")
    assert np.array_equal(*logits)


def test_openvino_gives_the_same_logits(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    student, images = student_of(Depthwise, **quant_for("openvino", {"bits": "w8a8"}))
    model, *_ = onnx_model(student, SPEC, OnnxConfig(**file_for("openvino", {})))
    onnx.save(model, tmp_path / "model.onnx")
    compiled = openvino_core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = torch.from_numpy(compiled(images.numpy())[0])
    with torch.no_grad():
        expected = student(images)
    assert float((logits - expected).abs().max()) < 0.05 * float(expected.abs().max())


def _optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime executes."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


def test_the_guide_lists_every_target_with_its_status() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "deploy.md").read_text()
    for name, target in TARGETS.items():
        row = next(line for line in guide.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.endswith(f"| {target.status} |")


def test_what_is_stored_wider_than_it_needs_is_said() -> None:
    remark = stored_wider("ort-cpu", 4, {})
    assert remark == "weights of 4 bits are stored in 8; integers=packed or integers=int4 makes the file smaller and slower."
    assert "takes no narrower type" in str(stored_wider("tensorrt", 4, {}))
    for target, bits, given in (
        ("ort-cpu", 8, {}),
        ("ort-cpu", 32, {}),
        ("ort-cpu", 4, {"integers": "int4"}),
        ("tensorrt", 8, {}),
    ):
        assert stored_wider(target, bits, given) is None, (target, bits)
