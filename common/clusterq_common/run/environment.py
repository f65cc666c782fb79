"""Environment of a run: versions, device, threads, the command."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from clusterq_common.escape import without_secrets
from clusterq_common.files import atomic_write

PACKAGES = ("clusterq", "torch", "pytorchcv", "webdataset", "numpy", "pillow", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of Python and of each package whose arithmetic or file format a result depends on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def commit() -> str | None:
    """Return the git commit of the checkout that this runs from, `+` for local changes; None for an installed copy."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    # An installed copy may lie inside someone else's repository.
    if head.returncode or tracked.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout else "")


def environment(device: torch.device) -> dict[str, object]:
    """Return a JSON-ready description of the machine and the command."""
    return {
        "versions": versions(),
        "commit": commit(),
        "device": device_name(device),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "command": [without_secrets(word) for word in sys.argv],
    }


def write_environment(path: Path, device: torch.device) -> None:
    """Write `environment` as JSON (atomically)."""
    atomic_write(path, json.dumps(environment(device), indent=2) + "\n")
