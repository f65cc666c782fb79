"""Options that a method's help leaves out."""

from typing import Any

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_gen.bank.config import BANK_METHODS, refuse_meaningless
from clusterq_gen.config import SECTIONS, MethodConfig
from clusterq_gen.method_options import left_out, unused_options
from clusterq_gen.methods import METHODS

# Read by the training itself: for every method, and for those with centroids.
BY_TRAINING = {"method", "mix_probability", "mix_classes"}
WITH_CENTROIDS = {"ema_rate", "start_layer", "fda_units"}


class Recorded:
    """Settings of a method that write down which of them are read."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self._config = MethodConfig()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._config, name)


@pytest.mark.parametrize("name", METHODS)
def test_a_generators_help_has_the_settings_that_its_method_reads(name: str) -> None:
    config: Any = Recorded()
    method = METHODS[name](config, 0)
    read = config.read | BY_TRAINING | (WITH_CENTROIDS if method.needs_centroids else set())
    assert MethodConfig.model_fields.keys() - unused_options(name) == read
    assert unused_options(name) - MethodConfig.model_fields.keys() == set(SECTIONS["bank"].model_fields)


@pytest.mark.parametrize("name", BANK_METHODS)
def test_a_banks_help_has_the_settings_that_it_does_not_refuse(name: str) -> None:
    refused = set()
    for section, model in SECTIONS.items():
        for field in model.model_fields:
            labelled = {"bank": {"bank_class_weight": 1.0}, "emit": {"refine_steps": 1}, "method": {"method": name}}
            try:
                refuse_meaningless(labelled, {section: {field: None}})
            except ClusterqError:
                refused.add(field)
    assert unused_options(name) == refused


def test_an_unknown_method_leaves_out_nothing() -> None:
    assert left_out({"method": "gdfg"}) == (set(), "")
