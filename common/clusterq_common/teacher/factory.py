"""A user's own function, `path/to/file.py:function`: a model, or a method. `trust` says which may be run."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from clusterq_common.errors import ClusterqError

EXPECTED = "expected path/to/file.py:function, a function without required arguments that returns a torch.nn.Module"


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
