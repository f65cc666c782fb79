"""`clusterq-finetune export` and `evaluate --onnx` on the digits: all formats, and every mistake in one sentence."""

import errno
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from clusterq_common import files
from clusterq_common.export.openvino_model import openvino_core
from clusterq_common.export.program import ABOUT
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.quant.convert import quantizers
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.shards.manifest import read_manifest
from clusterq_finetune.student import load_student
from tests.conftest import Cli, DigitsTeacher, Outcome

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


def refused(done: Outcome, *words: str) -> None:
    """Exit code 2 and one sentence with all of `words`."""
    assert done.code == 2, (done.out, done.err)
    for word in words:
        assert word in done.err, f"{word!r} not in {done.err!r}"
    assert "Traceback" not in done.err


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, digits_run: Path, finetune: Cli) -> Path:
    """A W3A4 student, calibrated only, ends at 8 bits."""
    out = tmp_path_factory.mktemp("student") / "w3a4"
    done = finetune("--shards", digits_run, "--bits", "w3a4", "--first-last-bits", "8", "--epochs", "0", "--out", out)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, student: Path, finetune: Cli
) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """The student in a format, made once, and what was printed as JSON."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, tuple[Path, dict[str, Any]]] = {}

    def export(kind: str) -> tuple[Path, dict[str, Any]]:
        if kind not in made:
            out = folder / "new" / f"model.{kind}"
            done = finetune("export", "--student", student, "--format", kind, "--out", out, "--json")
            assert done.code == 0, done.err
            made[kind] = out, json.loads(done.out.splitlines()[-1])
        return made[kind]

    return export


def test_onnx(
    exported: Callable[[str], tuple[Path, dict[str, Any]]],
    student: Path,
    digits_run: Path,
    digits_teacher: DigitsTeacher,
    finetune: Cli,
) -> None:
    path, result = exported("onnx")
    assert result["bytes"] == path.stat().st_size
    assert result["largest_logit_difference"] < 1
    about = OnnxModel(path).description
    assert about.model_dump(mode="json") == result["description"]
    assert about.teacher == read_manifest(digits_run / "shards").teacher.digest
    assert (about.arch, about.bits, about.first_last_bits, about.opset) == ("digits_net.py:digits_net", "w3a4", 8, 21)
    assert (about.input.size, about.input.channels, about.input.num_classes, about.input.mean) == (8, 1, 10, (0.5,))

    val = ["--val", digits_teacher.val, "--threads", 1, "--json"]
    both = finetune("evaluate", "--student", student, "--onnx", path, "--no-optimise", *val)
    assert both.code == 0, both.err
    compared = json.loads(both.out.splitlines()[-1])
    assert compared["onnx"]["agreement_with_student"] > 99
    assert abs(compared["onnx"]["top1"] - compared["student"]["top1"]) < 1
    alone = finetune("evaluate", "--onnx", path, *val)
    assert alone.code == 0, alone.err
    figures = json.loads(alone.out.splitlines()[-1])
    assert figures["onnx"]["top1"] == compared["onnx"]["top1"], "narrow weights: optimisations change nothing"
    assert figures["preprocessing"] == compared["preprocessing"]
    assert "onnx: top-1" in alone.out


def test_onnx_of_a_generators_run(digits_run: Path, tmp_path: Path, finetune: Cli) -> None:
    done = finetune("export", "--student", digits_run, "--out", tmp_path / "m.onnx", "--batchnorm", "keep", "--json")
    assert done.code == 0, done.err
    about = json.loads(done.out.splitlines()[-1])["description"]
    assert len(about["batchnorm_kept"]) == 5
    assert about["teacher"] == read_manifest(digits_run / "shards").teacher.digest
    assert "BatchNorm kept as a layer: 1, 4" in done.out


def test_packed_integers_read_by_the_guides_reader(
    exported: Callable[[str], tuple[Path, dict[str, Any]]], student: Path
) -> None:
    path, _ = exported("safetensors-int")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "def read" in block]
    assert len(code.splitlines()) <= 30
    assert "torch" not in code
    scope: dict[str, Any] = {}
    exec(compile(code, str(GUIDE), "exec"), scope)
    about, integers, tensors = scope["read"](path)
    model, spec, _ = load_student(student, torch.device("cpu"))
    assert about["input"] == spec.model_dump(mode="json")
    sites = quantizers(model)
    weights = {name for name in sites if name.endswith("weight_quantizer")}
    assert set(integers) == {name.removesuffix("_quantizer") for name in weights}
    for name in weights:
        layer, key = model.get_submodule(name.rpartition(".")[0]), name.removesuffix("_quantizer")
        expected = sites[name].to_int(layer.weight)
        assert np.array_equal(integers[key], expected.integers.numpy())
        real = scope["real"](integers[key], tensors[f"{key}.scale"], tensors[f"{key}.zero_point"])
        assert np.array_equal(real, expected.dequantize().numpy())
    assert set(about["activations"]) == set(sites) - weights
    for name, limits in about["activations"].items():
        site: FakeQuantizer = sites[name]
        assert (limits["bits"], limits["low"], limits["high"]) == (site.bits, site.grid.low, site.grid.high)
        assert tensors[f"{name}.scale"] == site.step().detach().numpy()
    rest = {name for name in model.state_dict() if "quantizer" not in name and not name.endswith("num_batches_tracked")}
    assert rest - set(tensors) == set()
    assert all(np.array_equal(tensors[name], model.state_dict()[name].numpy()) for name in rest - set(integers))


def test_program(exported: Callable[[str], tuple[Path, dict[str, Any]]], student: Path) -> None:
    """torch.export's program gives the student's logits, for any number of images, and knows no path of this machine."""
    path, result = exported("pt2")
    assert result["largest_logit_difference"] < 1e-4
    about = {ABOUT: ""}
    program = torch.export.load(path, extra_files=about)
    assert json.loads(about[ABOUT])["bits"] == "w3a4"
    model, _, _ = load_student(student, torch.device("cpu"))
    for count in (1, 5):
        images: Tensor = torch.randn(count, 1, 8, 8)
        with torch.no_grad():
            assert torch.allclose(program.module()(images), model(images), atol=1e-4)
    with zipfile.ZipFile(path) as archive:
        assert not any(str(Path(torch.__file__).parent).encode() in archive.read(name) for name in archive.namelist())


def test_openvino_loads_the_file(exported: Callable[[str], tuple[Path, dict[str, Any]]]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino")
    path, _ = exported("onnx")
    images = torch.randn(8, 1, 8, 8)
    compiled = openvino_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = OnnxModel(path, optimise=False)(images)
    logits = torch.from_numpy(compiled(images.numpy())[0])
    assert float((logits - expected).abs().max()) < 0.1 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--student", "absent"], ["--student", "absent holds no student.safetensors"]),
        (["--opset", "18"], ["--opset: 18 has no type for weights of 3 bits", "--opset 21", "--integers int8"]),
        (["--opset", "17"], ["opset", "found 17", "greater than or equal to 18"]),
        (["--batchnorm", "melt"], ["melt"]),
        (["--format", "pt2", "--opset", "21"], ["--opset: --format pt2 has no such choice"]),
        (["--format", "tflite"], ["tflite"]),
        (["--out", "TAKEN"], ["taken.onnx exists", "--overwrite"]),
        (["--out", "TAKEN/m.onnx"], ["--out", "cannot be written"]),
    ],
)
def test_export_refuses(flags: list[str], words: list[str], finetune: Cli, student: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.onnx"
    taken.write_text("mine")
    arguments = [flag.replace("TAKEN", str(taken)) for flag in flags]
    if "--student" not in flags:
        arguments += ["--student", str(student)]
    if "--out" not in flags:
        arguments += ["--out", str(tmp_path / "model.onnx")]
    refused(finetune("export", *arguments), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.onnx"]
    assert taken.read_text() == "mine"


def test_full_disk(finetune: Cli, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(partial: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    out = tmp_path / "model.st"
    out.write_text("the one before")
    monkeypatch.setattr(files, "publish", full)
    command = ["export", "--student", student, "--format", "safetensors-int", "--out", out, "--overwrite"]
    refused(finetune(*command), "--out", "No space left on device", "free some space")
    assert [path.name for path in tmp_path.iterdir()] == ["model.st"]
    assert out.read_text() == "the one before"
    monkeypatch.undo()
    assert finetune(*command).code == 0


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package(package: str, finetune: Cli, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refused(
        finetune("export", "--student", student, "--out", tmp_path / "m.onnx"),
        package,
        "pip install '.[onnx]' in clusterq's checkout",
    )


def test_evaluate_refuses(
    exported: Callable[[str], tuple[Path, dict[str, Any]]],
    digits_run: Path,
    digits_teacher: DigitsTeacher,
    finetune: Cli,
    tmp_path: Path,
) -> None:
    path, _ = exported("onnx")
    val = ["--val", digits_teacher.val]
    refused(finetune("evaluate", *val), "--student is missing", "--onnx")
    refused(finetune("evaluate", "--onnx", path, "--integer", *val), "--integer", "--student")
    refused(finetune("evaluate", "--student", digits_run, "--no-optimise", *val), "--no-optimise", "--onnx")
    refused(finetune("evaluate", "--onnx", path, "--device", "cuda", *val), "--device", "CPU")
    refused(finetune("evaluate", "--onnx", tmp_path / "absent.onnx", *val), "absent.onnx does not exist")
    refused(finetune("evaluate", "--onnx", path, "--student", digits_run, *val), "exported from a student with SHA-256")
    (tmp_path / "text.onnx").write_text("no model")
    refused(finetune("evaluate", "--onnx", tmp_path / "text.onnx", *val), "cannot load", "text.onnx")
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    refused(
        finetune("evaluate", "--onnx", tmp_path / "bare.onnx", *val), "does not say which images", "export the student again"
    )


def test_a_factory_is_asked_for_by_its_own_folder_alone(student: Path, finetune: Cli, tmp_path: Path) -> None:
    """A student from elsewhere must not bring code along."""
    copied = tmp_path / "w3a4"
    shutil.copytree(student, copied)
    (copied / "net.py").write_text("raise SystemExit('ran')")
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(re.sub(r"arch: .*", f"arch: {copied / 'net.py'}:net", config, count=1))
    refused(finetune("export", "--student", copied, "--out", tmp_path / "m.onnx"), "net.py")
