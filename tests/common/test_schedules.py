"""Learning rates over the steps: the module's examples."""

import doctest

from clusterq_common import schedules


def test_examples() -> None:
    assert doctest.testmod(schedules) == (0, 6)
