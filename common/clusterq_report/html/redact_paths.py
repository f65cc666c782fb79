"""Redaction of paths on a page that may be shared.

Locations inside the run's folder are shown; the location of that folder is not.
"""

import os
import re
from pathlib import Path

# Placeholder for the hidden folders of a path.
ELSEWHERE = "..."
# A path from the root, of POSIX or of Windows; a factory's `:function` may follow.
ABSOLUTE = re.compile(r"(?:[A-Za-z]:)?[\\/](?![\\/])")
# The same inside a sentence: at least two parts, and not part of a word, a URL or a relative path.
WITHIN = re.compile(r"(?<![\w.:/\\~-])(?:[A-Za-z]:)?[\\/][^\s\\/'\"<>|,;()]+(?:[\\/][^\s\\/'\"<>|,;()]+)+")
SAID = (
    f"Names after {ELSEWHERE}/ stand for what lies outside the run's folder; its config.yaml, environment.json and result.json have the "
    "paths in full."
)


def shown_path(text: str, folder: Path) -> str:
    """Return a value as shown on the page: an absolute path relative to the run's folder, or without its folders; else unchanged.

    >>> run = Path("/data/out/finetune-w4a4")
    >>> [shown_path(text, run) for text in ("/data/out/finetune-w4a4/config.yaml", "/data/out/shards", "/home/me/net.py:build", "out/")]
    ['config.yaml', '../shards', '.../net.py:build', 'out/']
    """
    flag, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    return f"{flag}{equals}{_relative(value, folder)}" if ABSOLUTE.match(value) else text


def without_places(sentence: str, folder: Path) -> str:
    """Return a sentence, such as an error, with each absolute path in it redacted.

    >>> without_places("shards: /mnt/my.set/x.tar is cut short (1/2 of it, 3 images/s).", Path("/data/out"))
    'shards: .../x.tar is cut short (1/2 of it, 3 images/s).'
    """
    return WITHIN.sub(lambda found: _relative(found[0], folder), sentence)


def _relative(path: str, folder: Path) -> str:
    # Compared as text, because the folder may be another machine's.
    run = os.path.abspath(folder)
    for base, prefix in ((run, ""), (os.path.dirname(run), "../")):
        if base != os.sep and path.startswith(base + os.sep):
            return prefix + path[len(base) + 1 :]
    name = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return f"{ELSEWHERE}/{name}"
