"""Text on its way into a page. A run folder may be a stranger's: what it holds is shown as text, whatever it says."""

import re

from markupsafe import Markup, escape

LONGEST = 2000
# What HTML and XML forbid, halves of characters, and marks that turn the direction of text, so that it reads as what it is not.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)

# Options and programs whose names have hyphens, and code within a sentence; of text that is escaped already.
UNBROKEN = re.compile(r"(?<![\w/&;-])(?:--[a-z][\w-]*|clusterq-\w+)")
CODE = re.compile(r"`([^`\n]+)`")


def clean(value: object) -> str:
    """Return markup as it is, and anything else as at most 2000 printable characters that still have to be escaped.

    >>> clean("<b>\\x07")
    '<b>\ufffd'
    """
    if isinstance(value, Markup):
        return value
    text = str(value)
    return UNPRINTABLE.sub("\ufffd", text if len(text) <= LONGEST else text[:LONGEST] + " ...")


def unbroken(value: object) -> Markup:
    """Return a text, cleaned and escaped, with options and names of programs in one piece.

    A browser would break the line behind the first hyphen of an option.

    >>> print(unbroken("clusterq-gen train --lr '<b>'"))
    <span class="whole">clusterq-gen</span> train <span class="whole">--lr</span> &#39;&lt;b&gt;&#39;
    """
    return Markup(UNBROKEN.sub(r'<span class="whole">\g<0></span>', str(escape(clean(value)))))


def prose(value: object) -> Markup:
    """Return a sentence as `unbroken` does, with what stands between backticks as code.

    >>> print(prose("`train` does <b>"))
    <code>train</code> does &lt;b&gt;
    """
    return Markup(CODE.sub(r"<code>\1</code>", str(unbroken(value))))


def class_label(label: int, name: str | None) -> str:
    """Return a class as text: number and name, or the number alone where the name says no more.

    >>> class_label(3, "cat"), class_label(8, "8"), class_label(5, None)
    ('3 cat', '8', '5')
    """
    return str(label) if name is None or name == str(label) else f"{label} {name}"
