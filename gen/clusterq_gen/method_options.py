"""Options of `clusterq-gen train` that a method does not use, so that its help leaves them out. Free of torch."""

from typing import Any

from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import is_factory
from clusterq_gen.bank.config import BANK_METHODS, PACE, SHARED, is_bank, method_of
from clusterq_gen.config import SECTIONS
from clusterq_gen.config.method import GENERATOR_METHODS

# Settings of `MethodConfig` that only some of the generator methods read; the others are for all of them.
_CENTROIDS = (
    "alpha_fda",
    "alpha_de",
    "fda_reduction",
    "fda_units",
    "ema_rate",
    "de_noise",
    "de_mean_std",
    "de_std_std",
    "start_layer",
)
_BASE = ("alpha_bns", "kl_weight", "hard_gamma", "soft_target")
_GAME = ("alpha_ds", "alpha_as", "lambda_l", "lambda_u", "beta", "gamma")
READ_BY = {
    **dict.fromkeys(_CENTROIDS, ("clusterq",)),
    **dict.fromkeys(_BASE, ("clusterq", "gdfq", "qimera")),
    **dict.fromkeys(_GAME, ("adadfq",)),
}


def unused_options(method: str) -> set[str]:
    """Return the fields of all sections that a method does not use. A method of the user's own may use any but a bank's."""
    if is_bank(method):
        names = {name for section, shared in SHARED.items() for name in SECTIONS[section].model_fields.keys() - shared - PACE}
        return names | {name for name in SECTIONS["emit"].model_fields if name == "labels" or name.startswith("refine_")}
    own = set() if is_factory(method) else {name for name, methods in READ_BY.items() if method not in methods}
    return own | set(SECTIONS["bank"].model_fields)


def left_out(given: dict[str, Any]) -> tuple[set[str], str]:
    """Return what `--help-all` leaves out, and a line on how to see it.

    Args:
        given: the values of the command line by option, without defaults.
    """
    method = method_of({"method": {name: value for name, value in given.items() if name == "method" and value is not None}})
    if not is_factory(method) and method not in (*GENERATOR_METHODS, *BANK_METHODS):
        return set(), ""  # it is refused without --help-all
    others = f"For those of another method: {setting_name('method', 'NAME')} --help-all."
    return unused_options(method), f"Options of {setting_name('method', method)}. {others}"
