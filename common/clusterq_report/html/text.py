"""Text on its way into a page. A run folder may be a stranger's: nothing of it reaches the page but through here."""

import html
import math
import re

LONGEST = 2000
# What HTML and XML forbid, halves of characters, and marks that turn the direction of text, so that it reads as what it is not.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)
NOTHING = "–"


def escaped(value: object) -> str:
    """Anything as text for an element or for a quoted attribute; at most 2000 characters of it.

    >>> escaped('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    text = str(value)
    return _clean(text if len(text) <= LONGEST else text[:LONGEST] + " ...")


def tag(name: str, /, *children: str, **attributes: object) -> str:
    """An element; children are markup, attributes are text. Trailing underscores are dropped, inner ones become hyphens.

    >>> tag("line", x1=2, stroke_width=1.50, class_="axis")
    '<line x1="2" stroke-width="1.5" class="axis"/>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_clean(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    # Elements without an end tag exist in HTML by name only; in SVG any may close itself.
    if not children and name in CLOSING:
        return f"<{name}{given}/>"
    return f"<{name}{given}>{''.join(children)}</{name}>"


CLOSING = {"meta", "img", "br", "line", "path", "rect", "circle"}


def number(value: float | None, digits: int = 3) -> str:
    """A number for a person: so many significant digits, whole ones in full, a dash for none.

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
    """Percent as `91.20 %`."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.{decimals}f} %"


def _clean(text: str) -> str:
    return html.escape(UNPRINTABLE.sub("\ufffd", text))


def _short(value: object) -> str:
    """Coordinates with two decimals at most: a tenth of a pixel is nothing that one could see."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
