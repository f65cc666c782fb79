"""The methods by name, and the user's own. A new one needs a file, an entry below, and its name in `GENERATOR_METHODS`."""

from collections.abc import Callable

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.factory import call_function
from clusterq_common.teacher.spec import is_factory
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

EXPECTED = "expected path/to/file.py:function, a function of the settings and the seed that returns a clusterq_gen.methods.method.Method"


def build_method(config: MethodConfig, seed: int) -> Method:
    """Return the method that the settings name; `seed` keys the random draws of its losses.

    Raises:
        ClusterqError: the user's function cannot be loaded or returns something else; or the weights leave no loss for the
            warm-up.
    """
    method = _own(config, seed) if is_factory(config.method) else METHODS[config.method](config, seed)
    if not any(term.weight and term.warmup for term in method.terms):
        names = ", ".join(term.name for term in method.terms if term.warmup)
        raise ClusterqError(
            f"{setting_name('method', config.method)}: every loss of its warm-up ({names}) has weight 0, expected one above 0; see --help for the "
            "weights."
        )
    return method


def _own(config: MethodConfig, seed: int) -> Method:
    """Return a method from a user's file."""
    method = call_function(config.method, config, seed, setting="method", expected=EXPECTED)
    if not isinstance(method, Method):
        raise ClusterqError(f"{config.method} returned {type(method).__name__}; {EXPECTED}.", setting="method")
    return method
