"""The methods by name. A new one is a file here, a name in `MethodConfig.method`, and a line below."""

from collections.abc import Callable

from clusterq_common.runtime.errors import ClusterqError
from clusterq_gen.config import MethodConfig
from clusterq_gen.methods.adadfq import adadfq
from clusterq_gen.methods.clusterq import clusterq
from clusterq_gen.methods.gdfq import gdfq
from clusterq_gen.methods.method import Method
from clusterq_gen.methods.qimera import qimera

METHODS: dict[str, Callable[[MethodConfig, int], Method]] = {
    "clusterq": clusterq,
    "gdfq": gdfq,
    "adadfq": adadfq,
    "qimera": qimera,
}


def build_method(config: MethodConfig, seed: int) -> Method:
    """The method that the settings name; `seed` keys whatever its losses draw.

    Raises:
        ClusterqError: its weights leave nothing to do in warm-up.
    """
    method = METHODS[config.method](config, seed)
    if not any(term.weight and term.warmup for term in method.terms):
        names = ", ".join(term.name for term in method.terms if term.warmup)
        raise ClusterqError(
            f"--method {config.method}: every loss of its warm-up ({names}) has weight 0, expected one above 0; see --help for the "
            "weights."
        )
    return method
