"""Files that ask for far more than they hold: refused in a sentence, in little time and memory."""

import io
import itertools
import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clusterq_common.archives.zip_directory import directory_size
from clusterq_common.documents import DEEPEST, LARGEST_JSON, LARGEST_YAML, MOST_LISTS, is_nested_deeper, read_json
from clusterq_common.documents import MOST_VALUES as MOST_JSON_VALUES
from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.description import describe
from clusterq_common.export.onnx_file import onnx_bytes
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import quantizers
from clusterq_common.quant.load import load_quantized
from clusterq_common.run.checkpoint import load_checkpoint, save_weights
from clusterq_common.run.metrics import MetricsLog
from clusterq_common.settings import read_yaml
from clusterq_common.teacher.spec import Geometry, InputSpec
from clusterq_common.teacher.weights import load_weights, read_checkpoint
from clusterq_finetune.data.preprocess import preprocess
from clusterq_finetune.data.real.cifar import open_cifar
from clusterq_finetune.results import compare, read_result
from clusterq_report.run_data import RunData
from clusterq_report.run_predictions import AT_ONCE, LONGEST_NAME, MOST_IMAGES, MOST_VALUES
from tests.finetune.export_nets import SPEC, Plain, student_of
from tests.finetune.small_student import prepared, settings, small_net

CIFAR = InputSpec(size=32, channels=3, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Nothing here may grow the process by half a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10, "KiB"


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


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: &a {b: 1}\nc: {<<: [*a, *a]}",
        "a: " + "[" * 5000,
        "a: " + "- " * 5000,
        "a: 2001-99-99",
        "a: !!timestamp x",
        "a: !!int ''",
        "a: !!bool x",
        "a: !!python/object/apply:os.system [ls]",
        "a: " + "9" * 5000,
        "a: " + "x" * LARGEST_YAML,
        "\x00",
    ],
)
def test_yaml_that_is_more_than_it_looks(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ClusterqError, match=r"config\.yaml"):
        read_yaml(tmp_path / "config.yaml")


def test_a_report_reads_aliases_and_an_error_shows_little_of_them(tmp_path: Path) -> None:
    wide = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 20)}]\n" for a, b in itertools.pairwise("abcdefghijklmnop")
    )
    (tmp_path / "config.yaml").write_text(wide + "recipe: {}\nbits: *p\n")
    config = RunData.open(tmp_path).config
    with pytest.raises(ClusterqError, match="bits") as caught:
        QuantConfig.validated({"bits": config["bits"]})
    with pytest.raises(ClusterqError, match="quantizer"):
        QuantConfig.validated({"quantizer": config["bits"]})
    assert len(str(caught.value)) < 1000
    (tmp_path / "config.yaml").write_text("a: &a {b: 1}\nc: {<<: [*a, *a]}\nrecipe: {}\n")
    with pytest.raises(ClusterqError, match="uses merge keys"):
        RunData.open(tmp_path)


def test_json_that_is_more_than_it_looks(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert not is_nested_deeper({"a": [1]}, 2)
    for text in ("[" * 100_000, "[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "9" * 5000, "{", "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ClusterqError, match=r"result\.json is"):
            read_json(path, what="a result")
    for many in ("0," * (MOST_JSON_VALUES + 1), "[]," * (MOST_LISTS + 1), "{}," * (MOST_LISTS + 1)):
        path.write_text(f"[{many}0]")
        with pytest.raises(ClusterqError, match=r"commas or .* opening brackets"):
            read_json(path, what="a result")
    with path.open("wb") as file:
        file.truncate(LARGEST_JSON + 1)
    with pytest.raises(ClusterqError, match="expected at most"):
        read_json(path, what="a result")
    with pytest.raises(ClusterqError, match="cannot be read"):
        read_json(tmp_path, what="a result")


GOOD = {
    "teacher": {"arch": "a", "digest": "d"},
    "shards": {"digest": "d", "method": "m", "training_images": 1},
    "student": {"sha256": "0"},
    "threads": 1,
    "settings": {
        "quant": {"bits": "w4a4", "first_last_bits": None, "quantizer": "q", "range": "r", "activation_sites": "s"},
        "recipe": {"epochs": 1, "lr": 0.1, "ce_weight": 1.0, "kl_weight": 1.0},
        "runtime": {"seed": 0},
    },
}


@pytest.mark.parametrize("value", [None, [], {}, "x", 1e400, -1, True, [[1]]])
@pytest.mark.parametrize(
    "place", ["teacher", "teacher.arch", "shards.digest", "student", "settings", "settings.quant", "threads"]
)
def test_results_of_any_shape(tmp_path: Path, place: str, value: object) -> None:
    values = json.loads(json.dumps(GOOD))
    path = tmp_path / "result.json"
    path.write_text(json.dumps(values))
    assert len(compare([path])) == 1
    *way, last = place.split(".")
    part = values
    for name in way:
        part = part[name]
    part[last] = value
    path.write_text(json.dumps(values))
    if place == "threads" and value == -1:
        return
    if value == "x" and place in {"teacher.arch", "shards.digest"}:
        assert compare([path])
        return
    with pytest.raises(ClusterqError, match="expected"):
        read_result(path, "teacher.arch", "shards.digest", "student.sha256")
        compare([path])


def run_with(folder: Path, arrays: dict[str, bytes]) -> RunData:
    (folder / "config.yaml").write_text("recipe: {}\n")
    with zipfile.ZipFile(folder / "predictions.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in arrays.items():
            packed.writestr(f"{name}.npy", data)
    return RunData.open(folder)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def claims(shape: str, kind: str = "<i4") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def test_predictions_that_are_more_than_they_look(tmp_path: Path) -> None:
    names, label = npy(np.array(["a", "b"])), npy(np.array([0, 1], np.int32))
    predictions = run_with(tmp_path, {"name": names, "label": label, "student": label})
    assert (list(predictions.image_names()), predictions.predictions["student"].tolist()) == (["a", "b"], [0, 1])
    for arrays in (
        {"name": names, "label": claims("(1000000000000,)")},
        {"name": names, "label": claims("(2, 1000000000)")},
        {"name": claims("(2,)", "<U1000000000"), "label": label},
        {"name": claims("(1,)", "<U1") + b"\xff\xff\xff\x7f", "label": npy(np.array([0]))},
        {"name": names, "label": npy(np.array([None, 1], dtype=object))},
        {"name": names, "label": b"\x93NUMPY\x01\x00\x08\x00" + b"(((((((\n"},
        {"name": names, "label": b""},
        {"name": names},
        {"name": names, "label": npy(np.array([0, 1 << 40]))},
        {"name": names, "label": npy(np.array([0, -1]))},
        {"name": names, "label": npy(np.array([0, 1], np.int8)), "student": names},
        {"name": npy(np.array(["a" * (LONGEST_NAME + 1), "b"])), "label": label},
        {"name": names, "label": label, **{f"m{number}": label for number in range(2000)}},
    ):
        with pytest.raises(ClusterqError, match="is not what an evaluation writes"):
            _ = run_with(tmp_path, arrays).predictions, list(run_with(tmp_path, arrays).image_names())


@pytest.mark.parametrize(
    ("images", "models"), [(MOST_IMAGES + 1, 1), (MOST_IMAGES, MOST_VALUES // MOST_IMAGES), (1 << 40, 1)], ids=str
)
def test_predictions_of_too_many_images_are_refused_by_their_headers(tmp_path: Path, images: int, models: int) -> None:
    """Zeros take a thousandth of their size in the file."""
    heads = {name: claims(f"({images},)", "<i1") for name in ("label", *map(str, range(models - 1)))}
    heads["name"] = claims(f"({images},)", "<U1")
    source = run_with(tmp_path, {})
    with zipfile.ZipFile(tmp_path / "predictions.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, head in heads.items():
            size = images * (4 if name == "name" else 1)
            with packed.open(f"{name}.npy", "w") as member:
                member.write(head)
                for _ in range(size >> 20 if size < 1 << 28 else 0):
                    member.write(bytes(1 << 20))
                member.write(bytes(size % (1 << 20)))
    with pytest.raises(ClusterqError, match=r"more than any evaluation writes|in 0 bytes"):
        _ = source.predictions


def test_many_predictions_are_read_a_piece_at_a_time(tmp_path: Path) -> None:
    count = AT_ONCE // 8 + 3
    names = np.array([f"{number:060}" for number in range(count)])
    label = (np.arange(count) % 7).astype(np.int16)
    source = run_with(
        tmp_path, {"name": npy(names), "label": npy(label), "m": npy(label.astype(">i4")), "m_probabilities": b"?"}
    )
    assert list(source.image_names()) == names.tolist()
    assert {name: array.tolist() for name, array in source.predictions.items()} == dict.fromkeys(("label", "m"), label.tolist())
    assert source.predictions["m"].dtype == np.int64


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


@pytest.mark.parametrize("text", ["3\n[]\n", '{"step": "x"}\n', '{"a": 1}\n', '{"step": null}\n'])
def test_metrics_of_any_shape_are_dropped(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' + text)
    MetricsLog(path, keep_before_step=5)
    assert path.read_text() == '{"step": 0}\n'
    path.write_text("{\n")
    with pytest.raises(ClusterqError, match="no JSON"):
        MetricsLog(path, keep_before_step=5)
