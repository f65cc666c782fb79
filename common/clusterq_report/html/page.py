"""A self-contained HTML file without external resources, in light and dark, for screen and paper."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clusterq_report.html.blocks import Block
from clusterq_report.html.text import clean, prose, unbroken

Level = Literal["good", "plain", "warning"]


@dataclass(frozen=True)
class Section:
    """A section of the page; it is folded unless `opened`. A section without blocks is left out."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    opened: bool = False


@dataclass(frozen=True)
class Remark:
    """A sentence that interprets the figures of this run, and its level of concern."""

    level: Level
    sentence: str


@dataclass(frozen=True)
class Report:
    """A whole page.

    Attributes:
        title: title of the page.
        lead: one sentence on the work and its result.
        tiles: the most important figures, name to text.
        remarks: remarks on the reliability of the figures.
        sections: all other sections.
        headline: blocks below the tiles: the result as a chart, and the next command.
        guide: the page of the documentation that explains this page.
    """

    title: str
    lead: str
    tiles: Mapping[str, str]
    remarks: Sequence[Remark]
    sections: Sequence[Section]
    headline: Sequence[Block] = ()
    guide: str = "docs/report.md"

    def html(self) -> str:
        """Return the file's text, which is valid as HTML and as XML."""
        script = _file("sort.js")
        page = _environment().get_template("page.html.j2")
        shown = [section for section in self.sections if section.blocks]
        return page.render(page=self, sections=shown, style=_file("style.css"), script=script, policy=policy(script))


def policy(script: str) -> str:
    """Return the page's Content-Security-Policy: nothing is fetched, and no script runs but the one with this text."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


@cache
def _file(name: str) -> Markup:
    return Markup((files("clusterq_report.html") / "templates" / name).read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    """Return the templates. Every value is cleaned and escaped on its way in, without being asked to."""
    environment = Environment(
        loader=PackageLoader("clusterq_report.html"),
        autoescape=True,
        finalize=clean,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": prose, "unbroken": unbroken}
    return environment
