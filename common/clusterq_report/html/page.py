"""A self-contained HTML file without scripts or external resources, in light and dark, for screen and paper."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clusterq_report.html.style import STYLE
from clusterq_report.html.text import escaped, tag

# Protects against content of a hostile folder: a browser fetches and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

Level = Literal["good", "plain", "warning"]


@dataclass(frozen=True)
class Section:
    """A section of the page; `body` is markup. A section without a body is left out."""

    anchor: str
    title: str
    body: str


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
        guide: the page of the documentation that explains this page.
    """

    title: str
    lead: str
    tiles: Mapping[str, str]
    remarks: Sequence[Remark]
    sections: Sequence[Section]
    guide: str = "docs/report.md"

    def html(self) -> str:
        """Return the file's text, which is valid as HTML and as XML."""
        shown = [section for section in self.sections if section.body]
        head = tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", escaped(self.title)),
            tag("style", STYLE),
        )
        contents = tag("nav", *(tag("a", escaped(one.title), href=f"#{one.anchor}") for one in shown), aria_label="Contents")
        marks = {"good": "✓", "plain": "·", "warning": "!"}
        remarks = [
            tag("li", tag("span", marks[one.level], class_="mark"), escaped(one.sentence), class_=one.level)
            for one in self.remarks
        ]
        body = tag(
            "body",
            tag("header", tag("h1", escaped(self.title)), tag("p", escaped(self.lead), class_="lead"), contents),
            tag(
                "main",
                tiles(self.tiles),
                tag("section", tag("h2", "Can it be trusted?"), tag("ul", *remarks, class_="remarks"), id="trust")
                if remarks
                else "",
                *(tag("section", tag("h2", escaped(one.title)), one.body, id=one.anchor) for one in shown),
            ),
            tag(
                "footer",
                tag("p", f"Made by clusterq. One file, no script, nothing is fetched. {self.guide} says how to read it."),
            ),
        )
        return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def tiles(values: Mapping[str, str]) -> str:
    """Return a few figures in large type."""
    return tag("dl", *(tag("div", tag("dt", escaped(k)), tag("dd", escaped(v))) for k, v in values.items()), class_="tiles")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """Return a table of text; the first `words` columns are words, the others figures."""

    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(tag(kind, escaped(cell), class_=None if n < words else "figure") for n, cell in enumerate(row))

    body = "".join(tag("tr", cells("td", row)) for row in rows)
    return tag("div", tag("table", tag("thead", tag("tr", cells("th", heads))), tag("tbody", body)), class_="wide")


def figure(title: str, drawing: str, caption: str) -> str:
    """Return a chart (markup) with its title above and its caption below (both text)."""
    return tag("figure", tag("h3", escaped(title)), drawing, tag("figcaption", escaped(caption)))


def paragraph(text: str) -> str:
    """Return a paragraph of text."""
    return tag("p", escaped(text))


def code(text: str) -> str:
    """Return a block of text to copy."""
    return tag("pre", tag("code", escaped(text)))


def folded(summary: str, body: str) -> str:
    """Return details that open on request (and on paper); `body` is markup."""
    return tag("details", tag("summary", escaped(summary)), body)
