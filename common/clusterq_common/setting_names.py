"""Names of settings in texts: `weights` in Python, `--weights` while a command of ours runs.

A text is written with `setting_name("weights")` where it speaks of a setting, and the name is spelled when the text is made. Nothing is
replaced in a finished text, so what it quotes (a path, a stranger's name) is never taken for a setting.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

# Makes the words for a setting from its name and its value, None where the text names no value.
Spelling = Callable[[str, object], str]


def _as_argument(name: str, value: object) -> str:
    return name if value is None else f"{name}={value}"


# Of the whole process, threads included: a command line is a program of its own.
_spelling: Spelling = _as_argument


def setting_name(name: str, value: object = None) -> str:
    """Name a setting in a text for a user, as the caller of this program writes it.

    Args:
        name: the setting's field or argument, such as `input_size`.
        value: the value that the text speaks of; None where it speaks of the setting alone.

    Examples:
        >>> setting_name("input_size"), setting_name("integers", "int8"), setting_name("logits", False)
        ('input_size', 'integers=int8', 'logits=False')
    """
    return _spelling(name, value)


def runs_in_command() -> bool:
    """Return whether a command of clusterq runs, whose settings are flags; False for a call from Python."""
    return _spelling is not _as_argument


def in_a_command(words: str) -> str:
    """Return words that make sense only where a command of ours runs; empty in Python, which has no run folder and no help."""
    return words if runs_in_command() else ""


@contextmanager
def settings_spelled_by(spelling: Spelling) -> Iterator[None]:
    """Spell settings as `spelling` does within the block."""
    global _spelling
    before, _spelling = _spelling, spelling
    try:
        yield
    finally:
        _spelling = before


@contextmanager
def settings_renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Give some settings other names in texts within the block.

    It is for shared code that is called for another setting than the one that it speaks of.

    Args:
        names: the name in the shared code -> the name that the user knows.
    """
    spelling = _spelling
    with settings_spelled_by(lambda name, value: spelling(names.get(name, name), value)):
        yield
