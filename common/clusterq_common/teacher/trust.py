"""The decision whether settings from a file may run code, made here for every command. Free of torch.

Code is a factory or a method, `path/to/file.py:function`. What counts is where its name came from, not where it points: paths can
be spelled so that no comparison of them sees through it.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import info
from clusterq_common.run.own_runs import is_own_code, is_own_file, remember_run
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import RANDOM, TeacherConfig, absolute_factory, is_factory

# Section and field of every setting that can name code, or a file whose content goes somewhere.
ARCH = ("teacher", "arch")
METHOD = ("method", "method")
WEIGHTS = ("teacher", "weights")
CLASS_NAMES = ("emit", "class_names")
CODE = (ARCH, METHOD)


def refuse_foreign_code(
    saved: Mapping[str, Any],
    given: Mapping[str, Mapping[str, Any]],
    source: Path,
    *,
    looks_at: Sequence[tuple[str, str]] = (ARCH, METHOD, WEIGHTS, CLASS_NAMES),
) -> None:
    """Make sure that settings from a file name no code but this user's own; nothing of them has been used yet.

    Code is taken from the command line of this call, or from a run that this user's program started with that very code, told by a
    record outside the run (`own_runs`). A file of weights cannot run anything; where a stranger's settings choose it, it is named.
    A file of class names is refused likewise: its lines would go into a set that may be passed on.

    Args:
        saved: what the file says, section -> field -> value, as it was read.
        given: what this call's command line says, likewise; it stands above the file.
        source: the file, a config.yaml or result.json in a run's folder.
        looks_at: the settings of those above that this command uses.

    Raises:
        ClusterqError: the file names code or a file of class names, and no command line of this user did.
    """
    for section, name in looks_at:
        value = _value(saved, section, name)
        if value is None or name in given.get(section, {}):
            continue
        if (section, name) not in CODE:
            _check_file((section, name), value, source)
            continue
        # What is no text may become some when it is validated, so it is no name of a known architecture either.
        if isinstance(value, str) and not is_factory(value):
            continue
        code = value if isinstance(value, str) else repr(value)
        if not is_own_code(source.parent, code):
            raise ClusterqError(
                f"{source} names code in a file, {_printable(code)}, and is of no run that you started here with it, so nothing of "
                "that file was run; expected code that you name yourself: look at the file, then add "
                f"{setting_name(name, _printable(_suggested(code)))}.",
                setting=name,
            )


def remember_code(folder: Path, teacher: TeacherConfig, *more: str, class_names: str | None = None) -> None:
    """Write down that the run just started in a folder has code that this user named.

    Args:
        folder: the run's; its config.yaml is written.
        teacher: its settings, resolved.
        more: other settings that may name code.
        class_names: the file of class names.
    """
    code = [value for value in (teacher.arch, *more) if is_factory(value)]
    files = [path for path in (teacher.weights, class_names) if path not in (None, RANDOM)]
    remember_run(folder, code, files)


def _value(saved: Mapping[str, Any], section: str, name: str) -> Any:
    values = saved.get(section)
    return values.get(name) if isinstance(values, Mapping) else None


def _check_file(setting: tuple[str, str], path: Any, source: Path) -> None:
    """Refuse a stranger's file of class names; name one of weights."""
    if path == RANDOM or (isinstance(path, str) and is_own_file(source.parent, path)):
        return
    if setting == CLASS_NAMES:
        raise ClusterqError(
            f"{source} names the file {_printable(path)}, and is of no run that you started here with it; its lines would go "
            f"into the set's manifest, expected a file that you name yourself: look at it, then add {setting_name(setting[1], 'FILE')}.",
            setting=setting[1],
        )
    info(f"Note: {source}, which no command of yours wrote here, says that the weights are {_printable(path)}.")


def _suggested(code: str) -> str:
    """The code as a setting names it wherever a program is started; as it is where its path is none."""
    try:
        return absolute_factory(code) if ":" in code else code
    except (OSError, RuntimeError, ValueError):
        return code


def _printable(text: Any) -> str:
    """A stranger's value as a shell takes it, without what a terminal would obey."""
    shown = text if isinstance(text, str) else repr(text)
    return shlex.quote("".join(letter if letter.isprintable() else "?" for letter in shown))
