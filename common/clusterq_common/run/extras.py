"""Import of packages that only an extra installs."""

import importlib
from types import ModuleType

from clusterq_common.errors import ClusterqError


def need(package: str, wanted_by: str, extra: str) -> ModuleType:
    """Import `package`, which `pip install clusterq[extra]` brings; `wanted_by` is what asked for it.

    Raises:
        ClusterqError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ClusterqError(
            f"{wanted_by}: the package {package} is not installed, expected clusterq's extra `{extra}`; run pip install clusterq[{extra}]."
        ) from error
