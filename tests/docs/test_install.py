"""The tables of docs/install.md against pyproject.toml."""

import re
import tomllib
from typing import Any

from tests.docs.blocks import ROOT

TEXT = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def rows(heading: str) -> list[list[str]]:
    """Return the cells of each row of the table whose first column has this heading."""
    lines = TEXT.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    cells = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split("|")])
    return cells


def test_the_table_of_extras_is_that_of_the_project() -> None:
    shown = {extra.strip("`"): re.findall("`(.+?)`", packages) for extra, _, packages in rows("extra")}
    wanted = {
        extra: [re.split(r"[<>=~!]", requirement)[0] for requirement in requirements]
        for extra, requirements in PROJECT["optional-dependencies"].items()
    }
    assert shown == wanted


def test_the_versions_of_python_are_those_that_were_run() -> None:
    run = {python for python, what in rows("Python") if not what.startswith("never run")}
    classified = {match[1] for line in PROJECT["classifiers"] if (match := re.fullmatch(r".*:: Python :: (3\.\d+)", line))}
    assert run == classified, "a classifier is a promise: it comes with a run"
    assert PROJECT["requires-python"] == f">={min(run)}"


def test_the_image_takes_the_build_arguments_that_the_page_names() -> None:
    named = {argument.strip("`") for argument, _, _ in rows("build argument")}
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert named == set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
