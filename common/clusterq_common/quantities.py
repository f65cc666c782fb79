"""Quantities as text for a person: numbers, percent, counts of things, sizes and durations. One function for each, for every program."""

import math
import re

NOTHING = "–"
SIZES = ("bytes", "kB", "MB", "GB", "TB")
SIZE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,15}))?\s*([kMGT]?)(i?)B?", re.IGNORECASE)
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
# Largest error of a float32 mean of numbers around 1; the machine epsilon is 1.2e-7.
ROUNDING = 1e-6


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits; whole numbers are in full, and a missing one is a dash.

    >>> number(0.0123456), number(1234567.0), number(None), number(-4e-9)
    ('0.0123', '1,234,567', '–', '-4e-09')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    if 1e-4 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}"
    return f"{value:.{digits}g}"


def percent(value: float | None, decimals: int = 2) -> str:
    """Return a percentage as `91.20 %`; a missing one is a dash."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.{decimals}f} %"


def count(how_many: float | None, singular: str, several: str | None = None) -> str:
    """Return a number of things, with the noun in singular or plural.

    >>> count(1, "problem"), count(0, "problem"), count(1200, "class", "classes")
    ('1 problem', '0 problems', '1,200 classes')
    """
    return f"{number(how_many)} {singular if how_many == 1 else several or singular + 's'}"


def size(how_many_bytes: float) -> str:
    """Return a number of bytes in decimal units, with three digits.

    >>> size(1), size(812), size(4800), size(12_345_678), size(3.24e9)
    ('1 byte', '812 bytes', '4.80 kB', '12.3 MB', '3.24 GB')
    """
    # In integers, since a manifest may name numbers that no float holds.
    total, unit, place = round(how_many_bytes), 1, 0
    while 2 * total >= 1999 * unit and place < len(SIZES) - 1:
        unit, place = 1000 * unit, place + 1
    if place == 0:
        return count(total, "byte")
    decimals = max(0, 3 - len(str(total // unit)))
    whole, part = divmod((2 * total * 10**decimals + unit) // (2 * unit), 10**decimals)
    return f"{whole:,}{f'.{part:0{decimals}}' if decimals else ''} {SIZES[place]}"


def parse_bytes(text: str) -> int | None:
    """Return the bytes that a size such as `400kB`, `1.5 MiB`, `2T` or `250000` names, rounded down; None where it is no size.

    >>> parse_bytes("500MB"), parse_bytes("1.5 GiB"), parse_bytes("7"), parse_bytes("large")
    (500000000, 1610612736, 7, None)
    """
    match = SIZE.fullmatch(text.strip())
    if match is None:
        return None
    unit = (1024 if match[4] else 1000) ** POWERS[match[3].lower()]
    part = match[2] or ""
    return int(match[1] + part) * unit // 10 ** len(part)


def duration(seconds: float) -> str:
    """Return a duration in readable units.

    >>> duration(7.4), duration(83), duration(7400), duration(200_000)
    ('7 s', '1 min 23 s', '2 h 3 min', '2 d 7 h')
    """
    whole = round(seconds)
    for unit, name, part, part_name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // part} {part_name}"
    return f"{whole} s"


def without_rounding_below_zero(value: float, unit: float = 1.0) -> float:
    """Return 0 for a value that only float32's rounding made negative; others as they are, so that a really negative one shows.

    It is for figures that cannot be negative, such as a KL divergence, whose `unit` is what it is multiplied by (T² and its weight).

    >>> without_rounding_below_zero(-3e-8), without_rounding_below_zero(0.2), without_rounding_below_zero(-0.5)
    (0.0, 0.2, -0.5)
    >>> without_rounding_below_zero(-3e-5, unit=400.0)
    0.0
    """
    return 0.0 if -ROUNDING * unit <= value < 0 else value
