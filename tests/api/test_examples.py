"""The examples in docstrings, `>>> ...`, of every module of ours are true."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(folder).with_suffix("").parts)
    for folder in (ROOT / "common", ROOT / "gen", ROOT / "finetune")
    for path in folder.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    # Examples marked `+SKIP` (addresses, a user's folders) are found, but not run.
    tests = doctest.DocTestFinder(exclude_empty=True).find(import_module(name))
    assert sum(len(test.examples) for test in tests), "no docstring holds the examples, so nothing would run them"
    run = doctest.DocTestRunner()
    for test in tests:
        run.run(test)
    assert run.failures == 0


def test_modules_with_examples_are_found() -> None:
    assert len(WITH_EXAMPLES) > 30
    assert "clusterq_common.schedules" in WITH_EXAMPLES
