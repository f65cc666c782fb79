"""`tools/dev.py`: when it installs, in which order, and what it hands back; no package is installed here."""

import ast
import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, looking at an empty project in `tmp_path`; `dev.ran` lists what it would have run."""
    spec = importlib.util.spec_from_file_location("dev_tool", ROOT / "tools" / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "BIN", tmp_path / ".venv" / "bin")
    module.ran = []
    monkeypatch.delenv("CLUSTERQ_COVERAGE", raising=False)  # .ci/run sets it
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # as some machines do

    def run(what: str, *command: str | Path) -> None:
        module.ran.append(" ".join(map(str, command)))
        if "venv" in command:
            (tmp_path / ".venv" / "bin").mkdir(parents=True)
            monkeypatch.setattr(module, "python_runs", lambda: True)

    monkeypatch.setattr(module, "run", run)
    return module


def installs(dev: ModuleType) -> list[str]:
    return [command.split("install ")[1] for command in dev.ran if " pip install " in command]


def test_torch_is_installed_first_and_everything_under_the_constraints(dev: ModuleType) -> None:
    assert dev.main(["test", "tests/gen", "-k", "loss"]) == 0
    assert "-m venv" in dev.ran[0]
    torch_first, project = installs(dev)
    assert torch_first.endswith("-c constraints.txt torch")
    assert project.endswith("-c constraints.txt -e .[dev]")
    assert dev.ran[-1].endswith("-m pytest tests/gen -k loss")


def test_nothing_is_installed_twice_until_a_pin_changes(dev: ModuleType, tmp_path: Path) -> None:
    dev.main(["test"])
    for command in (["test"], ["lint"], ["demo"]):  # dev holds what the demo needs
        dev.ran.clear()
        dev.main(command)
        assert installs(dev) == []
    (tmp_path / "constraints.txt").write_text("another pin")
    dev.ran.clear()
    dev.main(["demo"])
    assert installs(dev)[1].endswith("-e .[demo]")
    assert "venv" not in dev.ran[0].split(), "a working environment is kept, and brought up to date"


def test_the_demo_extra_is_not_enough_for_the_tests(dev: ModuleType) -> None:
    dev.main(["demo"])
    dev.ran.clear()
    dev.main(["test"])
    assert installs(dev)[1].endswith("-e .[dev]")


def test_what_is_imported_is_compiled_once(dev: ModuleType) -> None:
    """Not all packages by pip, and not the project by each process."""
    dev.main(["test"])
    assert all("--no-compile" in command.split() for command in dev.ran if " pip install " in command)
    assert "PYTHONDONTWRITEBYTECODE" not in dev.os.environ


def test_an_interrupted_install_is_done_again(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    dev.main(["test"])
    (dev.ROOT / "pyproject.toml").write_text("changed")
    working_run = dev.run

    def broken(what: str, *command: str | Path) -> None:
        if "-e" in command:
            raise subprocess.CalledProcessError(7, [str(part) for part in command])
        working_run(what, *command)

    monkeypatch.setattr(dev, "run", broken)
    assert dev.main(["test"]) == 7
    (dev.ROOT / "pyproject.toml").write_text("pyproject.toml")  # the old contents, whose install was overwritten
    monkeypatch.setattr(dev, "run", working_run)
    dev.ran.clear()
    assert dev.main(["test"]) == 0
    assert len(installs(dev)) == 2


def test_only_the_whole_suite_in_ci_has_a_coverage_floor(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLUSTERQ_COVERAGE", raising=False)
    dev.main(["test"])
    assert "python -m pytest --numprocesses" in dev.ran[-1]
    monkeypatch.setenv("CLUSTERQ_COVERAGE", "1")
    dev.main(["test", "-x"])
    assert dev.ran[-1].endswith("python -m pytest -x")
    dev.main(["test"])
    tested, checked = dev.ran[-2:]
    assert "python -m slipcover --source common,gen,finetune --json --out .coverage.json -m pytest --numprocesses" in tested
    assert checked.endswith("-m slipcover --merge .coverage.json --out .coverage.json --skip-covered --fail-under=90")


def test_lint_runs_every_check_and_hands_back_the_first_failure(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    dev.ensure_environment("dev")
    tried = []

    def failing(what: str, *command: str | Path) -> None:
        tried.append(what)
        if "format" in command:
            raise subprocess.CalledProcessError(3, [str(part) for part in command])
        if "mypy" in command:
            raise subprocess.CalledProcessError(-9, [str(part) for part in command])

    monkeypatch.setattr(dev, "run", failing)
    assert dev.main(["lint"]) == 3
    assert tried == ["checking style", "checking format", "checking types", "checking imports"]


def test_the_site_is_built_strictly_with_what_the_tests_need(dev: ModuleType) -> None:
    dev.main(["test"])
    dev.ran.clear()
    assert dev.main(["docs"]) == 0
    assert installs(dev) == []
    (build,) = dev.ran
    assert build.endswith("-m mkdocs build --strict --clean"), "with --quiet mkdocs counts no warnings"
    with pytest.raises(SystemExit):
        dev.main(["docs", "--quiet"])


def test_a_killed_command_gives_the_code_a_shell_would(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(what: str, *command: str | Path) -> None:
        raise subprocess.CalledProcessError(-9, [str(part) for part in command])

    monkeypatch.setattr(dev, "run", killed)
    assert dev.main(["demo"]) == 137


def test_an_old_python_is_told_so_before_anything_is_made(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev.sys, "version_info", (3, 9, 2))
    assert dev.main(["test"]) == 2
    assert "needs Python 3.11 or later" in capsys.readouterr().err
    assert dev.ran == []


def test_an_old_python_can_at_least_read_the_tool() -> None:
    ast.parse((ROOT / "tools" / "dev.py").read_text(), feature_version=(3, 8))


def test_every_direct_requirement_is_pinned_within_its_range() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9.]+", line) for line in lines), "exact, and without local build tags"
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in ("demo", "test", "lint", "docs") for line in _extra(project, extra)),
    ]
    for requirement in map(Requirement, wanted):
        if requirement.name != project["name"]:
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def _extra(project: dict[str, dict[str, list[str]]], name: str) -> list[str]:
    return project["optional-dependencies"][name]
