"""Shared fixtures of the tests of the library."""

from pathlib import Path

import pytest

from tests.common.teachers import FACTORY


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """The path of the file of factories."""
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    return str(path)
