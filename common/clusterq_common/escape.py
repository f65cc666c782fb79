"""Text on its way out: to a terminal, a shell, Markdown or a spreadsheet. One function for each; pages have `html/text.py`.

Names, notes and settings of a manifest, a result or a file may be a stranger's. None of them moves a cursor, begins a line, ends a
block or becomes a command.
"""

import csv
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

# Longer than any sentence or row of a table, shorter than what makes a terminal useless.
LONGEST = 10_000
BREAKS = re.compile(r"[\t ]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
# Controls, halves of characters (bytes of a file name that are no UTF-8), marks that turn or hide text.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff\U000e0000-\U000e007f]"
)
_MARKDOWN = re.compile(r"[\\*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "`": "&#96;"})
# What makes a block at the beginning of a line: a heading, a list, a rule, a table.
_BLOCK = re.compile(r"^(?:([#+=:-])|([0-9]+)([.)]))")
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s'\"]*@")
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^?\s'\"]*)\?[^\s'\"]*")
# A whole word of a command line: there a password may hold blanks and quotes, too.
_ADDRESS = re.compile(r"((?:--[\w-]+=)?[A-Za-z][A-Za-z0-9+.-]*://)(?:[^/?#]*@)?([^?]*)(?:\?.*)?", re.DOTALL)
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def one_line(text: object) -> str:
    r"""Text for a terminal: a single line, whatever would steer the terminal written out; at most 10,000 characters.

    >>> print(one_line("\x1b[31mred\nset: forged"))
    \x1b[31mred set: forged
    """
    whole = str(text)
    shown = whole if len(whole) <= LONGEST else f"{whole[:LONGEST]} ..."
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), BREAKS.sub(" ", shown).replace("\t", " "))


def without_secrets(text: str) -> str:
    """Remove possible credentials from addresses in a text.

    These are `NAME:PASSWORD@` in front of the server, and everything behind `?`.

    >>> without_secrets("from https://me:pass@host/set?token=1 to out")
    'from https://host/set to out'
    """
    if (word := _ADDRESS.fullmatch(text)) is not None:
        text = word[1] + word[2]
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


def encodable(text: str, encoding: str | None) -> str:
    r"""Text for a stream that may know few characters: the others as escapes.

    >>> print(encodable("\u00e4 - z", "ascii"))
    \xe4 - z
    """
    known = encoding or "ascii"
    return text.encode(known, "backslashreplace").decode(known)


def shell_command(*words: object) -> str:
    """A command line as a person can paste it.

    >>> print(shell_command("ls", "a b; rm c"))
    ls 'a b; rm c'
    """
    return shlex.join(one_line(word) for word in words)


def markdown(text: object) -> str:
    r"""Plain text inside Markdown: no block, link, emphasis or HTML comes out of it.

    >>> print(markdown("<b> of resnet20_x | *y*"))
    &lt;b&gt; of resnet20_x \| \*y\*
    """
    line = _MARKDOWN.sub(lambda found: f"\\{found[0]}", one_line(text).strip()).translate(_ENTITIES)
    return _BLOCK.sub(lambda found: f"\\{found[1]}" if found[1] else f"{found[2]}\\{found[3]}", line)


def markdown_paragraphs(text: str) -> str:
    """Free text as paragraphs of Markdown: blank lines part them."""
    return "\n\n".join(markdown(part) for part in re.split(r"\n\s*\n", text[:LONGEST]) if part.strip())


def markdown_code(text: object) -> str:
    """A span of code in Markdown.

    >>> markdown_code("net.py:build")
    '`net.py:build`'
    """
    return f"`{one_line(text).strip().replace('`', chr(39)) or ' '}`"


def csv_cell(value: Any) -> Any:
    """A cell of a table that a spreadsheet may open: text that it would take for a formula gets an apostrophe in front.

    >>> csv_cell("=1+1"), csv_cell("w4a4"), csv_cell(-1.5)
    ("'=1+1", 'w4a4', -1.5)
    """
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line.lstrip().startswith(_FORMULA) else line


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for a spreadsheet: a line of names, then a line for each row; the rows have the same names.

    >>> print(csv_table([{"layer": "=1+1", "bits": 4}]), end="")
    layer,bits
    '=1+1,4
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()
