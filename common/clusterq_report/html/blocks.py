"""Parts of a page as data. Pages make them, the templates in `templates/` turn them into HTML; nothing else writes tags."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    kind: ClassVar = "paragraph"
    text: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar = "heading"
    text: str


@dataclass(frozen=True)
class Code:
    """Text to copy, such as a command."""

    kind: ClassVar = "code"
    text: str


@dataclass(frozen=True)
class Table:
    """A table of text. The first `words` columns are words, the others figures. A reader can sort a `sortable` one by its columns."""

    kind: ClassVar = "table"
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    sortable: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart (SVG) with a title above and a caption below. A `wide` one does not share its row with another."""

    kind: ClassVar = "figure"
    title: str
    drawing: Markup
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """An image: its data as a URL, what it shows in words, and its size in pixels."""

    kind: ClassVar = "picture"
    url: Markup
    shows: str
    width: int
    height: int


@dataclass(frozen=True)
class Strips:
    """Rows of pictures, each with its name before it."""

    kind: ClassVar = "strips"
    rows: Sequence[tuple[str, Picture]]


@dataclass(frozen=True)
class Captioned:
    """Pictures side by side, each with its caption below."""

    kind: ClassVar = "captioned"
    pictures: Sequence[tuple[Picture, str]]


@dataclass(frozen=True)
class Folded:
    """Blocks that open on request, and on paper."""

    kind: ClassVar = "folded"
    summary: str
    blocks: "Sequence[Block]"


Block = Paragraph | Heading | Code | Table | Figure | Strips | Captioned | Folded
