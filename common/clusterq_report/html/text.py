"""Text on its way into a page. A run folder may be a stranger's: what it holds is shown as text, whatever it says."""

import re

from markupsafe import Markup

LONGEST = 2000
# What HTML and XML forbid, halves of characters, and marks that turn the direction of text, so that it reads as what it is not.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def clean(value: object) -> str:
    """Return markup as it is, and anything else as at most 2000 printable characters that still have to be escaped.

    >>> clean("<b>\\x07")
    '<b>\ufffd'
    """
    if isinstance(value, Markup):
        return value
    text = str(value)
    return UNPRINTABLE.sub("\ufffd", text if len(text) <= LONGEST else text[:LONGEST] + " ...")


def class_label(label: int, name: str | None) -> str:
    """Return a class as text: number and name, or the number alone where the name says no more.

    >>> class_label(3, "cat"), class_label(8, "8"), class_label(5, None)
    ('3 cat', '8', '5')
    """
    return str(label) if name is None or name == str(label) else f"{label} {name}"
