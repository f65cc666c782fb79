"""Settings and results that ask for far more than they hold, as YAML, JSON and predictions: refused in a sentence, in little time and memory."""

import io
import itertools
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from clusterq_common.documents import DEEPEST, LARGEST_JSON, LARGEST_YAML, MOST_LISTS, is_nested_deeper, read_json
from clusterq_common.documents import MOST_VALUES as MOST_JSON_VALUES
from clusterq_common.errors import ClusterqError
from clusterq_common.quant.config import QuantConfig
from clusterq_common.run.metrics import MetricsLog
from clusterq_common.settings import read_yaml
from clusterq_finetune.results import compare, read_result
from clusterq_report.run_data import RunData
from clusterq_report.run_predictions import AT_ONCE, LONGEST_NAME, MOST_IMAGES, MOST_VALUES

pytestmark = pytest.mark.usefixtures("little_memory")

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


@pytest.mark.parametrize("text", ["3\n[]\n", '{"step": "x"}\n', '{"a": 1}\n', '{"step": null}\n'])
def test_metrics_of_any_shape_are_dropped(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' + text)
    MetricsLog(path, keep_before_step=5)
    assert path.read_text() == '{"step": 0}\n'
    path.write_text("{\n")
    with pytest.raises(ClusterqError, match="no JSON"):
        MetricsLog(path, keep_before_step=5)
