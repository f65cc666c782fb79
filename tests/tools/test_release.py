"""Agreement of a release's files: the version in pyproject.toml, CITATION.cff and CHANGELOG.md."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys(), "required by the format"
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"], "a string, as in pyproject.toml"
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["authors"] == PROJECT["authors"]
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys(), "required of a reference"
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"ClusterQ ({paper['authors'][0]['family-names']} et al., *{paper['title']}*)" in readme
    assert all(author.keys() == {"given-names", "family-names"} for author in paper["authors"])


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (.+)$", changelog, re.MULTILINE)
    assert newest
    version = re.escape(PROJECT["version"])
    assert re.fullmatch(rf"\[Unreleased\] {version}|\[{version}\] - \d{{4}}-\d\d-\d\d", newest[1]), newest[0]
