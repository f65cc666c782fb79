"""What a run ran on: versions, device, threads, the command."""

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from clusterq_common.runtime.files import atomic_write

PACKAGES = ("clusterq", "torch", "pytorchcv", "webdataset", "numpy", "pillow", "safetensors")


def versions() -> dict[str, str]:
    """Version of Python and of each package whose arithmetic or file format a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def environment(device: torch.device) -> dict[str, object]:
    """A JSON-ready description of the machine and the command."""
    return {
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "command": sys.argv,
    }


def write_environment(path: Path, device: torch.device) -> None:
    """Write `environment` as JSON (atomically)."""
    atomic_write(path, json.dumps(environment(device), indent=2) + "\n")
