"""tools/gpu/pack.py on a few made-up images: what is in a pack, that it is read back, and that run.sh runs a command with it."""

import importlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

from clusterq_common.errors import ClusterqError
from clusterq_common.files import sha256_file
from clusterq_common.teacher.load import load_teacher
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.real import open_validation
from tests.conftest import ROOT

RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
CIFAR = InputSpec(size=32, channels=3, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
IMAGENET = CIFAR.model_copy(update={"size": 224, "num_classes": 1000})
Make = Callable[..., tuple[int, str]]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, data: Path) -> Callable[[str], ModuleType]:
    """A module of tools/gpu by name; packs are made from the made-up data."""
    monkeypatch.syspath_prepend(ROOT / "tools" / "gpu")
    monkeypatch.setenv("CLUSTERQ_DATA", str(data))
    monkeypatch.delenv("CLUSTERQ_UNPACKED", raising=False)
    return importlib.import_module


@pytest.fixture
def make(tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Make:
    """Run pack.py with flags, without network: its wheels are a tiny package, and one that every Python here has in a newer version."""
    pack = tool("pack")
    app = typer.Typer()
    app.command()(pack.main)

    def download(packages: dict[str, str], folder: Path, python: str, platforms: list[str]) -> None:
        assert packages["pydantic"]
        assert "manylinux_2_28_x86_64" in platforms
        write_wheel(folder, "tinything", "1.0")
        write_wheel(folder, "numpy", "0.1")

    def run(*flags: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(flag) for flag in ("--no-reference", "--python", RUNNING, *flags)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stderr

    monkeypatch.setattr(pack, "download", download)
    monkeypatch.setattr(pack, "build_own", lambda folder: write_wheel(folder, "clusterq", "0.0"))
    monkeypatch.setattr(pack.torch, "set_num_threads", lambda number: None)
    return run


def write_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel with one module that names itself."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"NAME = {name!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_a_pack_holds_what_it_says_the_same_each_time(make: Make, tmp_path: Path, data: Path) -> None:
    code, printed = make("--out", tmp_path / "one")
    assert code == 0, printed
    assert make("--out", tmp_path / "two")[0] == 0
    facts = json.loads((tmp_path / "one" / "pack.json").read_text())
    files = {str(path.relative_to(tmp_path / "one")): path for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert facts["files"].keys() == files.keys() - {"pack.json"}
    for name, stated in facts["files"].items():
        assert stated == {"bytes": files[name].stat().st_size, "sha256": sha256_file(files[name])}
    models = {name for name in files if name.startswith("models/")}
    assert models == {f"models/{path.name}" for path in (data / "models").iterdir()}
    assert all(files[name].read_bytes() == (data / name).read_bytes() for name in models)
    for name in ("images/cifar10.tar.xz", "images/photographs.tar.xz"):
        assert files[name].read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (facts["python"], facts["packages"]["pytorchcv"], facts["reference"]) == (RUNNING, "0.0.67", {})
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}, "nothing half made is left"


def test_images_are_read_back(make: Make, tool: Callable[[str], ModuleType], tmp_path: Path, data: Path) -> None:
    assert make("--out", tmp_path / "pack", "--no-wheels", "--quality", 95)[0] == 0
    pack = tool("packed").Pack.open(tmp_path / "pack")
    assert pack.cifar10.parent.parent == tmp_path / "pack.unpacked", "the pack itself stays as it is"
    packed, real = open_validation(pack.cifar10, CIFAR), open_validation(data / "data" / "cifar10" / "test", CIFAR)
    assert packed.labels == real.labels
    assert all(torch.equal(packed[index][0], real[index][0]) for index in range(len(real)))
    assert packed.name(1) == "cifar10.tar/class0/class0-1.webp"

    photographs = open_validation(pack.photographs, IMAGENET)
    folders = open_validation(data / "data" / "imagenet-like" / "val", IMAGENET)
    assert folders.labels == [0, 0, 0, 1, 999, 999]
    even = [0, 2, 3, 4]
    assert photographs.labels == [folders.labels[index] for index in even]
    for index, source in enumerate(even):
        apart = (photographs[index][0].float() - folders[source][0].float()).abs()
        assert apart.mean() < 3, "what the network sees, but for the JPEG: nothing is resized again"
    assert pack.facts.images["photographs"].images == 4


def test_fewer_photographs_are_spread_over_the_classes(tool: Callable[[str], ModuleType]) -> None:
    even_half = tool("packed_images").even_half
    images = SimpleNamespace(labels=[label for label in range(6) for _ in range(3)])
    assert even_half(images, 100) == [0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17]
    assert even_half(images, 6) == [0, 3, 6, 9, 12, 15]
    assert tool("packed_images").with_margin(224) == 256
    assert tool("packed_images").with_margin(32) == 32


def test_teachers_and_what_they_reach(make: Make, tool: Callable[[str], ModuleType], tmp_path: Path) -> None:
    assert make("--out", tmp_path / "pack", "--no-wheels")[0] == 0
    pack = tool("packed").Pack.open(tmp_path / "pack", unpacked=tmp_path / "elsewhere")
    assert pack.cifar10 == tmp_path / "elsewhere" / "cifar10.tar"
    teacher = load_teacher(pack.teacher("resnet20_cifar10"))
    assert (teacher.spec.size, teacher.spec.mean) == (32, (0.4914, 0.4822, 0.4465))
    reference = tool("pack").measure(pack.teacher("resnet20_cifar10"), pack.cifar10)
    assert reference.images == 20
    assert 0 <= reference.top1 <= reference.top5 <= 100
    mobile = pack.teacher("mobilenet_v1_x075")
    assert mobile.arch == f"{tmp_path / 'pack' / 'models' / 'mobilenet_v1_x075.py'}:build"
    assert Path(str(mobile.weights)).is_file()
    assert pack.images_of("mobilenet_v1_x025") == pack.photographs
    assert pack.images_of("resnet20_cifar100") is None
    with pytest.raises(ClusterqError, match="no teacher 'vgg', expected one of resnet20_cifar10,"):
        pack.teacher("vgg")


def test_mistakes_leave_nothing_behind(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = make("--out", tmp_path / "pack", "--limit", 1000)
    assert code == 2
    assert "bytes (images " in printed
    assert "expected at most 1,000; lower --quality" in printed
    assert list(tmp_path.iterdir()) == []

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    assert "mine exists" in make("--out", mine)[1]
    assert "is no pack" in make("--out", mine, "--overwrite")[1]
    assert (mine / "thesis.txt").read_text() == "years"

    assert make("--out", tmp_path / "pack", "--no-wheels")[0] == 0
    assert "pack exists" in make("--out", tmp_path / "pack", "--no-wheels")[1]
    assert make("--out", tmp_path / "pack", "--no-wheels", "--photographs", 1, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "pack" / "pack.json").read_text())["images"]["photographs"]["images"] == 1
    assert "constraints.txt pins no torchvision" in make("--out", tmp_path / "new", "--packages", "pydantic,torchvision")[1]

    monkeypatch.setenv("CLUSTERQ_DATA", str(tmp_path / "nowhere"))
    code, printed = make("--out", tmp_path / "new")
    assert code == 2
    assert "nowhere/models/resnet20_cifar10.safetensors does not exist, expected the teacher resnet20_cifar10" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "pack"}


def test_run_sh_runs_a_command_with_the_pack(make: Make, tmp_path: Path) -> None:
    pack, work = tmp_path / "a pack", tmp_path / "work"
    assert make("--out", pack)[0] == 0
    work.mkdir()
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": "before"}

    def run(*words: str, code: int = 0) -> str:
        command = ["bash", str(pack / "run.sh"), *words]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    show = "import os, tinything; print(os.environ['CLUSTERQ_PACK'], os.environ['PYTHONPATH'], tinything.NAME, sep='|')"
    folder, path, name = run(sys.executable, "-c", show).strip().split("|")
    assert (folder, name) == (str(pack), "tinything")
    site = Path(path.split(os.pathsep)[0])
    assert path.split(os.pathsep)[1:] == ["before"]
    assert site.is_relative_to(tmp_path / "a pack.unpacked")
    assert (site / "clusterq.py").is_file(), "the pack's own code, whatever version this Python has"
    assert not list(site.glob("numpy*")), "what is there already in a newer version stays"
    assert {tar.name for tar in site.parent.glob("*.tar")} == {"cifar10.tar", "photographs.tar"}
    made = site.stat().st_mtime_ns
    assert run("bash", "-c", 'exit "$0"', "3", code=3) == ""
    assert site.stat().st_mtime_ns == made, "installed once"

    for part in ("gen", "finetune", "common"):
        (work / part).mkdir()
    path = run("printenv", "PYTHONPATH").strip().split(os.pathsep)
    assert path == [*(str(work / part) for part in ("gen", "finetune", "common")), str(site), "before"]
    environment["CLUSTERQ_UNPACKED"] = str(tmp_path / "elsewhere")
    assert run("printenv", "PYTHONPATH").split(os.pathsep)[3].startswith(str(tmp_path / "elsewhere"))

    assert "there is no command" in run(code=2)
    weights = pack / "models" / "resnet20_cifar100.safetensors"
    weights.write_bytes(b"Resnet20_cifar100")
    assert "is not the file that pack.json lists" in run("true", code=2)
    weights.unlink()
    assert "resnet20_cifar100.safetensors is missing" in run("true", code=2)


def test_wheels_of_another_python_are_refused(make: Make, tool: Callable[[str], ModuleType], tmp_path: Path) -> None:
    assert make("--out", tmp_path / "pack", "--python", "3.99")[0] == 0
    unpack = tool("unpack")
    with pytest.raises(unpack.PackError, match=r"the wheels are for 3\.99; use that one, or make a pack with --python"):
        unpack.install(tmp_path / "pack", tmp_path / "place")
    (tmp_path / "pack" / "pack.json").write_text("[]")
    with pytest.raises(ClusterqError, match=r"--pack: .* is no pack"):
        tool("packed").Pack.open(tmp_path / "pack")


def test_which_packages_and_how_pip_is_asked(
    tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheels = tool("wheels")
    every = wheels.run_time_packages("3.12")
    assert {"numpy", "pillow", "typer", "click", "safetensors", "requests", *wheels.MISSING_ON_GPU_IMAGES} <= set(every) | {
        "click"
    }
    assert not {"torch", "sympy", "networkx", "triton", "setuptools", "pytest", "colorama"} & set(every)
    assert wheels.pinned(["Pydantic_Core"]) == {"pydantic-core": wheels.pinned(every)["pydantic-core"]}

    asked: list[list[str]] = []
    copied: list[set[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command[command.index("pip") + 1 :])
        if "wheel" in command:
            copied.append({path.name for path in Path(command[-1]).iterdir()})
            assert not list(Path(command[-1]).rglob("*.egg-info"))
        return SimpleNamespace(returncode=int("bad==2" in command), stderr="WARNING: odd\nERROR: none found\n")

    monkeypatch.setattr(wheels, "subprocess", SimpleNamespace(run=run))
    wheels.download({"good": "1"}, tmp_path, "3.12", ["manylinux2014_x86_64", "manylinux1_x86_64"])
    words = " ".join(asked[0])
    assert "download -q --only-binary=:all: --no-deps --python-version 3.12 --implementation cp" in words
    assert words.endswith(f"--platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d {tmp_path} good==1")
    assert "http" not in words
    wheels.build_own(tmp_path)
    assert copied == [{"pyproject.toml", "README.md", "LICENSE", "gen", "finetune", "common"}]
    with pytest.raises(ClusterqError, match=r"pip download failed \(none found\)"):
        wheels.download({"bad": "2"}, tmp_path, "3.12", [])
