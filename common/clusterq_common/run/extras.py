"""Import of packages that only an extra installs."""

import importlib
from types import ModuleType

from clusterq_common.errors import ClusterqError


def how_to_install(extra: str) -> str:
    """Return what to do for an extra, in words."""
    return f"run pip install '.[{extra}]' in clusterq's checkout"


def need(package: str, wanted_by: str, extra: str) -> ModuleType:
    """Import `package`, which the extra brings; `wanted_by` is what asked for it.

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
