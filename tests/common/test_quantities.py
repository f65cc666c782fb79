"""Quantities as text: units that fit, singular and plural, and what cannot be negative."""

import pytest

from clusterq_common.quantities import count, duration, number, parse_bytes, size, without_rounding_below_zero


def test_sizes_have_units_that_fit_them() -> None:
    sizes = [size(value) for value in (0, 1, 999, 1000, 4800, 999_499, 999_600, 1.5e9, 2e15)]
    assert sizes == ["0 bytes", "1 byte", "999 bytes", "1.00 kB", "4.80 kB", "999 kB", "1.00 MB", "1.50 GB", "2,000 TB"]
    assert size(10**402) == f"1{',000' * 130} TB", "more than a float holds"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8.2MB", 8_200_000), ("1.5 MiB", 1_572_864), ("2T", 2 * 10**12), (" 7 ", 7), ("0.5", 0), ("1e3", None), ("", None)],
)
def test_sizes_are_read_exactly(text: str, expected: int | None) -> None:
    assert parse_bytes(text) == expected


def test_one_thing_is_singular() -> None:
    assert [count(n, "problem") for n in (0, 1, 2, 1234)] == ["0 problems", "1 problem", "2 problems", "1,234 problems"]
    assert count(1, "class has", "classes have") == "1 class has"
    assert count(None, "image") == "– images"


def test_numbers_for_people() -> None:
    values = (0.012345, 1234567.0, 99.95, 0.0, -0.5, 1e-9, None, float("nan"), float("inf"))
    assert [number(value) for value in values] == ["0.0123", "1,234,567", "100.0", "0", "-0.500", "1e-09", "–", "–", "–"]
    assert [duration(value) for value in (7.4, 83, 7400, 200_000)] == ["7 s", "1 min 23 s", "2 h 3 min", "2 d 7 h"]


@pytest.mark.parametrize(("value", "unit", "expected"), [(-3e-8, 1, 0), (-0.01, 1, -0.01), (-3e-5, 400, 0), (0.2, 1, 0.2)])
def test_only_rounding_is_taken_for_zero(value: float, unit: float, expected: float) -> None:
    assert without_rounding_below_zero(value, unit) == expected
