"""A user's own function, `path/to/file.py:function`: a model, or a method. Only ever taken from the command line or a local run's config."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.spec import is_factory

EXPECTED = "expected path/to/file.py:function, a function without required arguments that returns a torch.nn.Module"


def refuse_code_of_folder(arch: str, folder: Path, flag: str = "--arch") -> None:
    """Make sure that a folder's own config does not have its own code loaded: the folder may be somebody else's.

    A run of one's own names a factory by its absolute path, outside the run.

    Raises:
        ClusterqError: it names a relative path, or one inside the folder.
    """
    file = Path(arch.rpartition(":")[0])
    if is_factory(arch) and (not file.is_absolute() or file.resolve().is_relative_to(folder.resolve())):
        raise ClusterqError(
            f"{flag}: the config in {folder} names the factory {arch}, which may have come with the folder and is code; expected the "
            "absolute path of a file elsewhere; look at it, keep a copy outside the folder, and pass or write that path."
        )


def build_factory(arch: str) -> nn.Module:
    """Run the user's file and call its function.

    Raises:
        ClusterqError: no such file or function, an exception inside, or a result that is no module.
    """
    model = call_function(arch, flag="--arch", expected=EXPECTED)
    if not isinstance(model, nn.Module):
        raise ClusterqError(f"--arch: {arch} returned {type(model).__name__}; {EXPECTED}.")
    return model


def call_function(where: str, *arguments: object, flag: str, expected: str) -> object:
    """What the function `path/to/file.py:function` makes of the arguments; `flag` and `expected` are for the errors.

    Raises:
        ClusterqError: no such file or function, or an exception inside.
    """
    path_text, _, function_name = where.rpartition(":")
    path = Path(path_text)
    if not path_text or not function_name.isidentifier():
        raise ClusterqError(f"{flag}: {where!r} names no function; {expected}.")
    if not path.is_file():
        raise ClusterqError(f"{flag}: {path} does not exist; {expected}.")
    specification = importlib.util.spec_from_file_location(f"_clusterq_factory_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise ClusterqError(f"{flag}: {path} is no Python file; {expected}.")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        function: Callable[..., Any] | None = getattr(module, function_name, None)
        made = function(*arguments) if callable(function) else None
    except Exception as error:  # the user's own code may raise anything
        raise ClusterqError(
            f"{flag}: {where} failed with {type(error).__name__}: {error}; mend the file and try again."
        ) from error
    if not callable(function):
        raise ClusterqError(f"{flag}: {path} has no function {function_name}; {expected}.")
    return made
