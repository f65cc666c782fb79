"""Paths on a page that is passed on: where something lies in the run's folder is worth reading, where that folder lies is nobody's
business."""

import os
import re
from pathlib import Path

# Stands for the folders that a path is shown without.
ELSEWHERE = "..."
# A path from the root, of POSIX or of Windows; a factory's `:function` may follow.
ABSOLUTE = re.compile(r"(?:[A-Za-z]:)?[\\/](?![\\/])")
# The same inside a sentence: two parts at least, and nothing before it that makes it part of a word, a URL or a relative path.
WITHIN = re.compile(r"(?<![\w.:/\\~-])(?:[A-Za-z]:)?[\\/][^\s\\/'\"<>|,;()]+(?:[\\/][^\s\\/'\"<>|,;()]+)+")
SAID = (
    f"Names after {ELSEWHERE}/ stand for what lies outside the run's folder; its config.yaml, environment.json and result.json have the "
    "paths in full."
)


def shown_path(text: str, folder: Path) -> str:
    """A value as the page shows it: an absolute path relative to the run's folder, or without its folders; anything else as it is.

    >>> run = Path("/data/out/finetune-w4a4")
    >>> [shown_path(text, run) for text in ("/data/out/finetune-w4a4/config.yaml", "/data/out/shards", "/home/me/net.py:build", "out/")]
    ['config.yaml', '../shards', '.../net.py:build', 'out/']
    """
    flag, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    return f"{flag}{equals}{_relative(value, folder)}" if ABSOLUTE.match(value) else text


def without_places(sentence: str, folder: Path) -> str:
    """A sentence, such as an error, with each absolute path in it shown so.

    >>> without_places("--shards: /mnt/my.set/x.tar is cut short (1/2 of it, 3 images/s).", Path("/data/out"))
    '--shards: .../x.tar is cut short (1/2 of it, 3 images/s).'
    """
    return WITHIN.sub(lambda found: _relative(found[0], folder), sentence)


def _relative(path: str, folder: Path) -> str:
    # As text: the folder may have been another machine's.
    run = os.path.abspath(folder)
    for base, prefix in ((run, ""), (os.path.dirname(run), "../")):
        if base != os.sep and path.startswith(base + os.sep):
            return prefix + path[len(base) + 1 :]
    name = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return f"{ELSEWHERE}/{name}"
