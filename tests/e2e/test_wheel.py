"""The source archive and the wheel: what they hold, and that the programs run from the wheel alone."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("setuptools", reason="the archives are built by setuptools, the extra `test`")

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"clusterq", "clusterq_cli", "clusterq_common", "clusterq_finetune", "clusterq_gen", "clusterq_report"}
FOLDERS = ("common", "finetune", "gen", ".ci", "docs", "tests", "tools")
FILES = (
    ".dockerignore",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "Dockerfile",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
)
FILES += ("SECURITY.md", "constraints.txt", "mkdocs.yml", "pyproject.toml")
# What tests, caches and builds leave in a checkout.
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc", ".hypothesis")
BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, 'build_' + sys.argv[1])(sys.argv[2])"
# Without `site`, so that an installed clusterq is not found: editable installs are found through a .pth file.
ALONE = """
import sys
sys.path[:0] = sys.argv.pop(1).split("\\n")
from importlib.metadata import distribution
program = sys.argv[1]
sys.argv[:] = sys.argv[1:]
code = None
try:
    {body}
except SystemExit as done:
    code = done.code
files = [module.__file__ for name, module in sys.modules.items() if name.startswith("clusterq") and module.__file__]
assert files
assert all(file.startswith(sys.path[0]) for file in files), files
sys.exit(code)
"""
START = ALONE.format(body='(entry,) = distribution("clusterq").entry_points.select(name=program)\n    entry.load()()')


def build(what: str, source: Path, target: Path) -> Path:
    """Build an archive with the setuptools of this environment, as pip does without isolation, and return its path."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(target)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def unpacked_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    checkout = folder / "checkout"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, checkout / name, ignore=LEFT_BEHIND)
    for name in FILES:
        shutil.copy(ROOT / name, checkout)
    (checkout / "tests" / "__pycache__").mkdir()
    (checkout / "tests" / "__pycache__" / "left.pyc").touch()
    (folder / "sdist").mkdir()
    with tarfile.open(build("sdist", checkout, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return source


@pytest.fixture(scope="module")
def wheel(unpacked_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel made from the source archive, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "built").mkdir()
    built = build("wheel", unpacked_source, folder / "built")
    assert built.name == f"clusterq-{version()}-py3-none-any.whl"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def alone(code: str, wheel: Path, folder: Path, *arguments: str) -> str:
    """Run code that finds this wheel and this environment's packages, no checkout and no installed clusterq; return its stdout."""
    packages = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    words = [sys.executable, "-I", "-S", "-c", code, "\n".join([str(wheel), *packages]), *arguments]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder: Path) -> set[str]:
    """Return the paths of all files below a folder, without what tests and builds leave behind."""
    ignored = {"__pycache__", ".hypothesis"}
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in paths
        if not ignored & set(path.parts) and not any(part.endswith(".egg-info") for part in path.parts)
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_source_archive_holds_each_file_of_the_project(unpacked_source: Path, folder: str) -> None:
    assert files(ROOT / folder) == files(unpacked_source / folder)


def test_the_source_archive_holds_what_tests_and_tools_read_beside_the_folders(unpacked_source: Path) -> None:
    assert set(FILES) <= {path.name for path in unpacked_source.iterdir()}
    assert not list(unpacked_source.rglob("*.pyc")), "what Python compiled stays out"


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    information = f"clusterq-{version()}.dist-info"
    assert {path.name for path in wheel.iterdir()} == {*PACKAGES, information}
    assert (wheel / information / "licenses" / "LICENSE").is_file()
    sources = set().union(*(files(ROOT / name) for name in ("common", "finetune", "gen")))
    assert {name for name in files(wheel) if not name.startswith(information)} == sources


def test_the_programs_start_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    assert alone(START, wheel, tmp_path, "clusterq-gen", "--version").startswith(f"clusterq-gen {version()} (")
    assert "quantize" in alone(START, wheel, tmp_path, "clusterq-finetune", "--help")


def test_packaged_files_are_read_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    body = "from clusterq_report.html import page; print(page._environment().get_template(program).filename)"
    template = alone(ALONE.format(body=body), wheel, tmp_path, "page.html.j2")
    assert Path(template.strip()) == wheel / "clusterq_report" / "html" / "templates" / "page.html.j2"
    body = "from importlib.resources import files; import clusterq_finetune; print(files(clusterq_finetune).joinpath(program).read_text())"
    table = alone(ALONE.format(body=body), wheel, tmp_path, "tables/imagenet_wnids.txt")
    assert len(table.split()) == 1000


def test_a_student_is_exported_by_the_wheel_alone(wheel: Path, digits_run: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra `onnx`")
    alone(START, wheel, tmp_path, "clusterq-finetune", "export", "--student", str(digits_run), "--out", "digits.onnx")
    onnx.checker.check_model(str(tmp_path / "digits.onnx"))


NET = """
from torch import nn

def build():
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    return nn.Sequential(*layers)
"""
# Both programs one after the other, so that torch is imported once.
BOTH = """for words in program.split(" ; "):
        name, *sys.argv[1:] = words.split()
        (entry,) = distribution("clusterq").entry_points.select(name=name)
        try:
            entry.load()()
        except SystemExit as done:
            assert not done.code, words
    code = 0"""


def test_a_set_and_a_student_are_made_by_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """A generator of a made-up classifier, its images, a student and its page, all as small as they can be."""
    (tmp_path / "net.py").write_text(NET)
    state = {name: torch.full_like(value, 0.5) for name, value in namespace(NET)["build"]().state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    teacher = "--arch net.py:build --weights net.pth --input-size 8 --in-channels 1 --num-classes 2 --mean 0.5 --std 0.5"
    small = "--preset quick --epochs 2 --warmup-epochs 1 --steps-per-epoch 2 --batch-size 8 --width 4 --refine-steps 0"
    emitted = "--per-class 4 --heldout-per-class 2 --keep-misclassified --threads 1 --no-report --out out"
    tuned = "--bits w4a4 --epochs 1 --steps-per-epoch 2 --batch-size 4 --threads 1 --out student"
    lines = [f"clusterq-gen train {teacher} {small} {emitted}", f"clusterq-finetune --shards out {tuned}"]
    printed = alone(ALONE.format(body=BOTH), wheel, tmp_path, " ; ".join(lines))
    assert "shards: out/shards (8 training images)" in printed
    assert (tmp_path / "out" / "shards" / "manifest.json").is_file()
    assert {"student.safetensors", "result.json", "report.html"} <= {path.name for path in (tmp_path / "student").iterdir()}


def namespace(source: str) -> dict[str, Any]:
    """Run a module's source and return its names."""
    names: dict[str, Any] = {}
    exec(source, names)
    return names
