"""Coverage by marks in the source is that of Python's tracing."""

import runpy
from contextlib import suppress
from pathlib import Path

import pytest
from coverage import Coverage

from tests.statements import MARKS, Marked

SOURCE = '''"""A module."""

from __future__ import annotations

import functools


def wrapped(function):
    return function


@wrapped
@functools.cache
def branches(x):
    """Go one way."""
    if x > 2:
        y = 1
    elif x:
        y = [
            2,
            x,
        ]
    else:
        y = 3
    for _ in range(0):
        y = 4
    else:
        y = 5
    while x > 100:
        x -= 1
    with open(__file__) if x > 3 else open("/dev/null"):
        y = lambda: (
            6
        )
    match x:
        case 1:
            y = 7
        case 2 | 3:
            y = 8
    return y


class Thing:
    """A class."""

    size = 1

    @property
    def twice(self):
        return 2 * self.size

    async def never(self):
        await self


def errors(value):
    try:
        int(value)
        done = 1
    except ValueError:
        done = 2
    except TypeError:
        done = 3
    else:
        done = 4
    finally:
        done = 5
    if done: done = 6
    global found
    found = done
    return [one for one in (1, 2) if one]


def counting():
    yield 1
    if False:
        yield 2


branches(2)
Thing().twice
errors("no"), list(counting())
'''


@pytest.mark.parametrize("more", ["", "branches(0)\n", "branches(1)\nerrors([])\nerrors(1)\n", "raise ValueError\nfound = 0\n"])
def test_the_report_is_that_of_tracing(more: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(SOURCE + more)
    traced, marked = (Coverage(data_file=None, config_file=False, include=[str(path)]) for _ in range(2))
    with traced.collect(), suppress(ValueError):
        runpy.run_path(str(path))
    found = Marked(path.read_bytes(), str(path))
    with suppress(ValueError):
        exec(found.code, {"__name__": "module", "__file__": str(path), MARKS: found.reached})
    marked.get_data().add_lines({str(path): found.lines()})
    _, statements, _, missing, _ = marked.analysis2(str(path))
    # Tracing also sees an `except` or `case` that was tried and did not match.
    lines = path.read_text().splitlines()
    tried = [line for line in missing if lines[line - 1].strip().startswith(("except ", "case "))]
    assert sorted({*traced.analysis2(str(path))[3], *tried}) == missing
    assert 0 < len(missing) < len(statements) / 2
