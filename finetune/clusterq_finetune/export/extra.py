"""The packages of the extra `onnx`, asked for only by what needs them."""

import importlib
from types import ModuleType

from clusterq_common.runtime.errors import ClusterqError


def need(package: str, flag: str) -> ModuleType:
    """Import `package`, of the extra `onnx`.

    Raises:
        ClusterqError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ClusterqError(
            f"{flag}: the package {package} is not installed, expected clusterq's extra `onnx`; run pip install clusterq[onnx]."
        ) from error
