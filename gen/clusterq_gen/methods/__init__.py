"""The methods by name. A new one is a file here, a name in `MethodConfig.method`, and a line below."""

from collections.abc import Callable

from clusterq_gen.config import MethodConfig
from clusterq_gen.methods.clusterq import clusterq
from clusterq_gen.methods.gdfq import gdfq
from clusterq_gen.methods.method import Method

METHODS: dict[str, Callable[[MethodConfig, int], Method]] = {"clusterq": clusterq, "gdfq": gdfq}


def build_method(config: MethodConfig, seed: int) -> Method:
    """The method that the settings name; `seed` keys whatever its losses draw."""
    return METHODS[config.method](config, seed)
