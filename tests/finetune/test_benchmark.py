"""`clusterq-finetune benchmark`: intervals, kernels, what it measures of a file, and its section of the report."""

import ctypes
import gc
import json
import math
import random
import re
import shutil
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.onnx_file import onnx_model
from clusterq_common.export.openvino_model import OpenVinoModel
from clusterq_common.run.run_folder import BENCHMARK, REPORT
from clusterq_finetune.benchmark.command import benchmark
from clusterq_finetune.benchmark.kernels import RUNS, _kernels, _openvino_kernels, integer_layers, integer_share
from clusterq_finetune.benchmark.request import Timing
from clusterq_finetune.benchmark.timing import WARM, median_of, ratio_of, take_turns
from clusterq_report.pages.deployment import kernel_rows, latency_rows
from tests.conftest import FACTORY, Cli, DigitsTeacher
from tests.finetune.export_nets import SPEC, Plain, student_of


def test_the_interval_of_a_median_covers_it() -> None:
    """In 95 of 100 cases or a few more, whatever the distribution."""
    draw = random.Random(0)
    for count in (6, 15, 30):
        inside = 0
        for _ in range(2000):
            median = median_of([draw.expovariate(1.0) for _ in range(count)])
            assert median.low <= median.median <= median.high
            inside += median.low <= math.log(2) <= median.high
        assert 0.94 <= inside / 2000 <= 0.99
    assert median_of([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]) == (3.5, 1.0, 6.0)
    with pytest.raises(ValueError, match="expected 6 or more"):
        median_of([1.0] * 5)


def test_actions_take_turns() -> None:
    called: list[str] = []
    turns = []
    seconds = take_turns(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 7, lambda: turns.append(len(called))
    )
    assert called == ["a", "b"] * (WARM + 7)
    assert turns == [2 * (WARM + turn) for turn in range(1, 8)]
    assert [len(values) for values in seconds.values()] == [7, 7]
    assert ratio_of([2.0, 4.0, 6.0, 8.0, 10.0, 12.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (2.0, 2.0, 2.0)


def test_kernels_are_told_apart_by_what_they_read_and_write() -> None:
    def event(operator: str, read: str, written: str, microseconds: float) -> dict[str, Any]:
        shapes = {"input_type_shape": [{read: [1]}], "output_type_shape": [{written: [1]}]}
        return {"dur": microseconds, "args": {"op_name": operator, **shapes}}

    first = [event("Conv", "float", "float", 1000.0), *[event("QLinearConv", "uint8", "int8", 1000.0)] * 2]
    first += [event("QuantizeLinear", "float", "uint8", 1000.0), event("MatMulIntegerToFloat", "int8", "float", 1000.0)]
    later = [{**entry, "dur": entry["dur"] / 100} for entry in first]
    stopped = [{**entry, "dur": 50_000.0} for entry in later]  # by something else on the machine
    kernels = _kernels(first + stopped + (RUNS - 1) * later)
    assert [(entry.operator, entry.integers, entry.calls) for entry in kernels] == [
        ("QLinearConv", True, 2),
        ("Conv", False, 1),
        ("QuantizeLinear", False, 1),
        ("MatMulIntegerToFloat", True, 1),
    ]
    assert integer_layers(kernels) == (3, 4)
    assert math.isclose(integer_share(kernels), 0.6)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, digits_run: Path, finetune: Cli) -> Path:
    """A calibrated W8A8 student made for ONNX Runtime, and its file beside it."""
    folder = tmp_path_factory.mktemp("benchmark")
    out = folder / "w8a8"
    flags = ("--bits", "w8a8", "--target", "ort-cpu", "--recipe", "calibrated")
    done = finetune("--shards", digits_run, "--arch", FACTORY, *flags, "--out", out)
    assert done.code == 0, done.err
    done = finetune("export", "--student", out, "--target", "ort-cpu", "--out", folder / "model.onnx")
    assert done.code == 0, done.err
    assert "made for ort-cpu (checked with onnxruntime" in done.out
    return out


def test_a_file_beside_its_float_export(
    student: Path, digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    model, out = student.parent / "model.onnx", tmp_path / "speed.json"
    flags = ("--turns", 6, "--threads", 1, "--batch", 2, "--val", digits_teacher.val, "--shards", digits_run)
    done = finetune("benchmark", model, "--student", student, *flags, "--out", out)
    assert done.code == 0, done.err
    record = json.loads(out.read_text())
    assert record == json.loads((student / BENCHMARK).read_text())
    assert record["bytes"]["file"] == model.stat().st_size < record["bytes"]["float"]
    (row,) = record["latency"]
    assert row["batch"] == 2
    assert row["ratio"][1] <= row["ratio"][0] <= row["ratio"][2]
    assert math.isclose(row["images_per_second"]["file"], 2000 / row["milliseconds"]["file"][0])
    kernels = record["kernels"]
    # The classifier is a matrix product with float output.
    assert kernels["file"]["integer_layers"] == kernels["file"]["layers"] == kernels["float"]["layers"]
    assert (kernels["float"]["integer_layers"], kernels["float"]["integer_share"]) == (0, 0)
    assert math.isclose(sum(kernel["share"] for kernel in kernels["file"]["kernels"]), 1)
    real = record["real_images"]
    assert abs(real["float"]["top1"] - digits_teacher.accuracy) < 0.01
    assert real["file"]["agreement"] > 90
    assert real["preprocessing"].startswith("whole image at 8x8")
    assert record["synthetic_images"]["file"]["agreement"] > 90
    assert f"| 2 | {row['milliseconds']['file'][0]:.2f} |" in done.out
    page = (student / REPORT).read_text()
    assert "The exported file" in page
    assert all(cell in page for cells in (*latency_rows(record), *kernel_rows(record)) for cell in cells)


def test_the_same_in_openvino(
    student: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino")
    model, run = student.parent / "model.onnx", tmp_path / "run"
    shutil.copytree(student, run)
    flags = ("--student", run, "--arch", FACTORY, "--turns", 6, "--threads", 1, "--batch", 1, "--json")
    words = ["benchmark", model, *flags, "--runtime", "openvino", "--val", digits_teacher.val]
    done = finetune(*words)
    assert done.code == 0, done.err
    record = json.loads(done.out.splitlines()[-1])
    assert (record["runtime"], [row["batch"] for row in record["latency"]]) == ("openvino", [1])
    assert re.search(r"^openvino 20[\d.]+, 1 threads, ", done.out, re.MULTILINE)
    kernels = record["kernels"]
    assert 0 < kernels["file"]["integer_layers"] <= kernels["file"]["layers"] == kernels["float"]["layers"]
    assert kernels["float"]["integer_layers"] == 0
    assert math.isclose(sum(kernel["share"] for kernel in kernels["file"]["kernels"]), 1)
    real = record["real_images"]
    assert abs(real["float"]["top1"] - digits_teacher.accuracy) < 0.01
    assert real["file"]["agreement"] > 90
    assert "in OpenVINO on the CPU, not in ort-cpu (version 20" in (run / REPORT).read_text()
    (tmp_path / "none.onnx").write_text("no model")
    assert "--float" in finetune("benchmark", model, "--runtime", "openvino", "--float", tmp_path / "none.onnx").err
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = finetune(*words)
    assert done.code == 2
    assert "--runtime openvino: the package openvino is not installed, expected clusterq's extra `openvino`" in done.err


class SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def own_signal_stack() -> tuple[int, bool]:
    """Address of this thread's signal stack, 0 for none, and whether that memory exists."""
    stack = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    address = stack.address or 0
    areas = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    return address, any(int(begin, 16) <= address < int(end, 16) for begin, end in areas)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_openvino_leaves_a_signal_stack_that_exists(student: Path) -> None:
    """Its plugin unmaps the stack that it set when another thread destroys it; the next signal then ended the process."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino")
    models = [OpenVinoModel(student.parent / "model.onnx", threads=1, name="file")]
    models[0](torch.zeros(1, 1, 8, 8))

    def drop() -> None:
        models.clear()
        gc.collect()

    other = threading.Thread(target=drop)
    other.start()
    other.join()
    address, exists = own_signal_stack()
    assert not address or exists


def test_layers_of_openvino_are_told_apart_by_their_kernels() -> None:
    """Conversions are no integer arithmetic, and what was optimised away is no kernel."""

    def layer(kind: str, kernel: str, microseconds: int, status: int = 1) -> SimpleNamespace:
        time = timedelta(microseconds=microseconds)
        return SimpleNamespace(node_type=kind, exec_type=kernel, real_time=time, status=status, EXECUTED=1)

    layers = [
        layer("Convolution", "brgconv_avx512_amx_I8", 30),
        layer("Convolution", "brgconv_avx512_1x1_f32", 40),
        layer("FullyConnectedQuantizedLegacy", "brgemm_avx512_amx_i8", 10),
        layer("Reorder", "jit_uni_i8", 20),
        layer("Relu", "undef", 500, status=0),
    ]

    class Profiled(OpenVinoModel):
        def __init__(self) -> None:
            """Without a file."""

        def run(self, images: object) -> None:
            """Measure nothing."""

        def profile(self, images: object) -> list[Any]:
            return layers

    kernels = _openvino_kernels(Profiled(), np.zeros(1))
    assert [(kernel.operator, kernel.integers, kernel.layer, kernel.share) for kernel in kernels] == [
        ("Convolution", False, True, 0.4),
        ("Convolution", True, True, 0.3),
        ("Reorder", False, False, 0.2),
        ("FullyConnectedQuantizedLegacy", True, True, 0.1),
    ]


def test_a_float_file_of_anyone(student: Path, finetune: Cli, tmp_path: Path) -> None:
    """It needs no metadata of clusterq's, only the same input; another one is refused."""
    plain = onnx.load(student.parent / "model.onnx")
    del plain.metadata_props[:]
    onnx.save(plain, tmp_path / "other.onnx")
    flags = ("--turns", 6, "--threads", 1, "--batch", 1)
    done = finetune("benchmark", student.parent / "model.onnx", "--float", tmp_path / "other.onnx", *flags, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["float"] == {"from": str(tmp_path / "other.onnx")}
    wrong, *_ = onnx_model(student_of(Plain, bits="w32a32")[0], SPEC, OnnxConfig())
    onnx.save(wrong, tmp_path / "wrong.onnx")
    done = finetune("benchmark", student.parent / "model.onnx", "--float", tmp_path / "wrong.onnx", *flags)
    assert done.code == 2
    assert "takes images of" in done.err
    assert "Traceback" not in done.err


def test_mistakes_are_told_in_a_sentence(student: Path, digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    model = student.parent / "model.onnx"
    other = tmp_path / "other"
    shutil.copytree(student, other)
    with (other / "student.safetensors").open("ab") as file:
        file.write(b" ")
    for flags, words in (
        (("--turns", 5), "--turns: 5 is too few"),
        (("--classes", "x"), "--classes: there is no --val"),
        (("--arch", FACTORY), "--arch: there is no --student"),
        (("--trust", tmp_path / "keys"), "--trust: there are no --shards"),
        (("--shards", digits_run, "--require-signed"), "--require-signed: there is no --trust"),
        (("--arch", FACTORY, "--student", student, "--float", model), "--arch: --float names the float file"),
        (("--crop-pct", 0.9), "--crop-pct: there is no --val"),
        (("--interpolation", "bicubic", "--shards", digits_run), "--interpolation: there is no --val"),
        (("--out", tmp_path / "no" / "x.json"), "is no folder"),
        (("--student", other), "was exported from a student with SHA-256"),
    ):
        done = finetune("benchmark", model, *flags)
        assert (done.code, words in " ".join(done.err.split())) == (2, True), done.err
    with pytest.raises(ClusterqError, match="does not exist"):
        benchmark(tmp_path / "none.onnx")


def test_a_file_for_a_fixed_batch_is_timed_at_it_alone(student: Path, tmp_path: Path) -> None:
    fixed = onnx.load(student.parent / "model.onnx")
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    next(entry for entry in fixed.metadata_props if entry.key == "fixed_batch").value = "3"
    onnx.save(fixed, tmp_path / "fixed.onnx")
    assert [row["batch"] for row in benchmark(tmp_path / "fixed.onnx", timing=Timing(turns=6, threads=1))["latency"]] == [3]
    with pytest.raises(ClusterqError, match="--batch: found 1, 3, but the file takes 3 images at once"):
        benchmark(tmp_path / "fixed.onnx", timing=Timing([1, 3], turns=6, threads=1))
