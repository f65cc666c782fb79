"""Times as users write them, and the sum of phases."""

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.time_budget import Phase, parse_time_budget, timetable, total_seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("30 min", 1800), ("1h30m", 5400), ("2D", 172_800), (" 0.5h ", 1800)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "0s", "soon", "1h30", "1e3s", "30m later"])
def test_no_times(text: str) -> None:
    with pytest.raises(ClusterqError, match="time_budget"):
        parse_time_budget(text)


def test_a_timetable_names_every_phase() -> None:
    phases = [Phase("generator", 100), Phase("shards", 20)]
    assert total_seconds(phases) == 120
    assert timetable(phases) == "about 2 min 0 s (generator 1 min 40 s, shards 20 s)"
