"""Import of packages that only an extra installs."""

import importlib
from types import ModuleType

from clusterq_common.errors import ClusterqError


def how_to_install(extra: str) -> str:
    """Return in words how to install an extra."""
    return f"run pip install '.[{extra}]' in clusterq's checkout"


def need(package: str, wanted_by: str, extra: str) -> ModuleType:
    """Import `package`, which the extra installs, for the setting or command `wanted_by`.

    Raises:
        ClusterqError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ClusterqError(
            f"{wanted_by}: the package {package} is not installed, expected clusterq's extra `{extra}`; {how_to_install(extra)}."
        ) from error


def need_onnx(wanted_by: str, *, runtime: bool = False) -> None:
    """Import the packages that write ONNX files, and with `runtime` the one that runs them, for a setting or command.

    Raises:
        ClusterqError: one is not installed.
    """
    for package in ("onnx", "onnxscript", *(["onnxruntime"] if runtime else [])):
        need(package, wanted_by, "onnx")
