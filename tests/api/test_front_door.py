"""`import clusterq`: which names it has, and what importing it costs."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import clusterq as cq
from clusterq_common.errors import ClusterqError

SOURCE = Path(cq.__file__).read_text(encoding="utf-8")


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, clusterq; print(clusterq.__all__ == sorted(clusterq.__all__, key=str), sorted(sys.modules))"
    code += "; assert 'InputSpec' in dir(clusterq); clusterq.InputSpec; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for package in ("torch", "numpy", "pydantic", "webdataset", "clusterq_common"):
        assert f"'{package}'" not in done.stdout


def test_names_are_the_same_for_type_checkers_and_at_run_time() -> None:
    block = next(node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    seen = {}
    for node in block.body:
        for name in node.names if isinstance(node, ast.ImportFrom) else []:
            other = "" if name.name == name.asname else f":{name.name}"
            seen[name.asname] = f"{node.module}{other}"
    assert seen == cq._PLACES
    assert sorted(seen) == sorted(cq.__all__)
    assert len(cq.__all__) <= 25
    assert (Path(cq.__file__).parent / "py.typed").is_file()
    for name in cq.__all__:
        value = getattr(cq, name)
        assert inspect.getdoc(value), name
    assert cq.__version__
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = cq.absent


def test_errors_speak_of_arguments(teacher: cq.Teacher, shards: cq.ShardSet, tmp_path: Path) -> None:
    with pytest.raises(ClusterqError, match=r"^arch: ") as caught:
        cq.load_teacher("resnet_of_nobody")
    assert "--" not in str(caught.value)
    with pytest.raises(cq.ClusterqError, match="is no folder"):
        cq.open_images(tmp_path / "absent", teacher.spec)
    with pytest.raises(cq.ClusterqError, match="holds no student"):
        cq.load_student(tmp_path)
    student = cq.convert(teacher.model, cq.QuantConfig(), teacher.spec.example())
    for call in (cq.distill, cq.reconstruct):
        with pytest.raises(cq.ClusterqError, match="call calibrate first"):
            call(student, teacher, shards)
    with pytest.raises(cq.ClusterqError, match="call calibrate first"):
        cq.export_onnx(student, teacher.spec, tmp_path / "student.onnx")
    with pytest.raises(cq.ClusterqError, match="made by convert"):
        cq.calibrate(teacher.model, shards.images(limit=8))
    with pytest.raises(cq.ClusterqError, match="reconstruct is none"):
        cq.reconstruct(student, teacher, shards, cq.Recipe())
    with pytest.raises(cq.ClusterqError, match="the teacher they were made for"):
        cq.finetune(cq.load_teacher("resnet20_cifar10", weights="random"), shards)
    train = {"train": shards.manifest.splits["train"]}
    without = cq.ShardSet(shards.folder, shards.manifest.model_copy(update={"splits": train}))
    with pytest.raises(cq.ClusterqError, match=r"^select: heldout, but .* use select=last"):
        cq.finetune(teacher, without, recipe=cq.Recipe(select="heldout"))
