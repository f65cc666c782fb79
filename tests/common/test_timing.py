"""Times of work on a machine that other programs disturb."""

from collections.abc import Callable

import pytest
import torch

from clusterq_common.device import timing
from clusterq_common.device.timing import each_image, steady_line, steady_seconds

CPU = torch.device("cpu")


def clock(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[], float]) -> None:
    """Let each timed call take the given seconds."""
    monkeypatch.setattr(timing, "seconds_of", lambda action, *_, **__: action() or seconds())


@pytest.mark.parametrize(
    ("seconds", "expected", "calls"),
    [
        ([1.0, 1.1], 1.0, 2),
        ([14.0, 1.0, 1.1], 1.0, 3),
        ([1.0, 14.0, 14.0, 1.1], 1.0, 4),
        ([16.0, 8.0, 4.0, 2.0, 1.0], 1.0, 5),
    ],
)
def test_the_fastest_repeat_counts_once_another_one_confirms_it(
    seconds: list[float], expected: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, called = list(seconds), []
    clock(monkeypatch, lambda: left.pop(0))
    assert steady_seconds(lambda: called.append(1), CPU) == expected
    assert len(called) == calls


def test_a_large_batch_follows_from_two_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    clock(monkeypatch, lambda: 3.0 + 0.5 * batches[-1])
    assert steady_line(batches.append, 2, 4, CPU, 100) == pytest.approx(3.0 + 0.5 * 100)
    assert batches == [2, 2, 4], "long work that is as fast as can be is not repeated"


def test_long_work_is_repeated_where_it_takes_longer_than_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    left, batches = [4.0, 4.0, 70.0, 5.0, 5.0], list[int]()
    clock(monkeypatch, lambda: left.pop(0))
    assert steady_line(batches.append, 2, 4, CPU, 100) == pytest.approx(3.0 + 0.5 * 100)
    assert batches == [2, 2, 4, 4, 4]


def test_an_error_of_measurement_makes_images_neither_free_nor_dearer_than_their_mean() -> None:
    assert each_image(2, 9.0, 4, 8.0) == 0.25 * 2.0
    assert each_image(2, 0.5, 4, 8.0) == 2.0
