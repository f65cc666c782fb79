"""Wheels for a machine without network: packages in the versions that constraints.txt pins, and clusterq itself."""

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clusterq_common.errors import ClusterqError

ROOT = Path(__file__).resolve().parents[2]
# Packages that an image made for PyTorch usually lacks. It may have a typing-extensions that is too old for pydantic.
MISSING_ON_GPU_IMAGES = (
    "pytorchcv",
    "webdataset",
    "braceexpand",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "typing-extensions",
)
# Built for a machine's GPU and driver, so the machine's user has chosen it.
LEFT_OUT = {"torch"}
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "gen", "finetune", "common")


def run_time_packages(python: str, root: Path = ROOT) -> list[str]:
    """Return all packages that clusterq needs to run on Linux except torch, with their own needs, from the installed packages.

    Raises:
        ClusterqError: one of them is not installed here, so its own needs are unknown.
    """
    target = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    target |= {"platform_machine": "x86_64", "os_name": "posix", "implementation_name": "cpython", "extra": ""}
    found: set[str] = set()
    waiting = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found | LEFT_OUT or (requirement.marker is not None and not requirement.marker.evaluate(target)):
            continue
        found.add(name)
        try:
            waiting += requires(name) or []
        except PackageNotFoundError as error:
            raise ClusterqError(
                f"--all: {name} is not installed here, expected all that clusterq needs; install clusterq first."
            ) from error
    return sorted(found)


def pinned(names: Sequence[str], root: Path = ROOT) -> dict[str, str]:
    """Return the version of each package in constraints.txt.

    Raises:
        ClusterqError: constraints.txt does not pin a package.
    """
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    versions = {canonicalize_name(found[1]): found[2] for line in lines if (found := re.match(r"([\w.-]+)==(\S+)", line))}
    names = [canonicalize_name(name) for name in names]
    unknown = next((name for name in names if name not in versions), None)
    if unknown is not None:
        raise ClusterqError(f"--packages: constraints.txt pins no {unknown}, expected packages that it names; add it there.")
    return {name: versions[name] for name in names}


def download(packages: dict[str, str], folder: Path, python: str, platforms: Sequence[str]) -> None:
    """Download one wheel for each package, from pip's configured index.

    Raises:
        ClusterqError: pip failed.
    """
    wanted = [f"{name}=={version}" for name, version in packages.items()]
    target = [
        "--python-version",
        python,
        "--implementation",
        "cp",
        *(word for tag in platforms for word in ("--platform", tag)),
    ]
    _pip("--packages", "download", "--only-binary=:all:", "--no-deps", *target, "-d", str(folder), *wanted)


def build_own(folder: Path, root: Path = ROOT) -> None:
    """Build clusterq's wheel from a copy of a checkout, so that the checkout stays clean and no earlier build is used.

    Raises:
        ClusterqError: pip failed.
    """
    with tempfile.TemporaryDirectory(prefix="clusterq-wheel-") as name:
        for source in SOURCES:
            if (root / source).is_dir():
                shutil.copytree(root / source, Path(name) / source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copy2(root / source, Path(name) / source)
        _pip("--out", "wheel", "--no-deps", "-w", str(folder), name)


def _pip(flag: str, command: str, *arguments: str) -> None:
    call = [sys.executable, "-m", "pip", "--disable-pip-version-check", command, "-q", *arguments]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        why = reasons[-1].removeprefix("ERROR: ") if reasons else "no reason given"
        raise ClusterqError(f"{flag}: pip {command} failed ({why}); check the network and pip's settings, or pass --no-wheels.")
