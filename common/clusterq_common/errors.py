"""The one exception that a user is meant to read."""

from collections.abc import Sequence
from difflib import get_close_matches

from clusterq_common.escape import one_line
from clusterq_common.setting_names import setting_name


class ClusterqError(Exception):
    """A mistake outside the program: a setting, a file, a full disk.

    The message is one sentence that names the setting or file, what was found, what was expected and the next thing to try.
    The command lines print it and leave with exit code 2; any other exception is a defect and keeps its traceback.
    What the sentence quotes may come from a stranger: it is one line, and nothing in it steers a terminal.

    Attributes:
        setting: name of the setting that does not fit, None where it is no single one. The message begins with it: `weights: ...` in Python,
            `--weights: ...` on the command line. Further settings in a sentence are written with `setting_name`.
        text: the message without that beginning.
    """

    def __init__(self, sentence: str = "", *, setting: str | None = None) -> None:
        self.setting, self.text = setting, one_line(sentence)
        super().__init__(self.text if setting is None else one_line(f"{setting_name(setting)}: {sentence}"))


def describe_error(error: BaseException) -> str:
    """Return the type and message of an exception that foreign code raised.

    >>> describe_error(KeyError("x")), describe_error(ValueError())
    ("KeyError: 'x'", 'ValueError')
    """
    try:
        text = str(error).strip()
    except Exception:  # it is their code, too
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Words to put behind an error about a name that nobody knows; empty where no known name is near it.

    >>> did_you_mean("clustrq", ["clusterq", "gdfq"]), did_you_mean("x", ["clusterq"])
    ('; did you mean clusterq?', '')
    """
    nearest = get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
