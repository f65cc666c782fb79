"""A user's own function, `path/to/file.py:function`: a model, or a method. `trust` says which may be run."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from clusterq_common.errors import ClusterqError, describe_error

EXPECTED = "expected path/to/file.py:function, a function without required arguments that returns a torch.nn.Module"


def build_factory(arch: str) -> nn.Module:
    """Run the user's file and call its function.

    Raises:
        ClusterqError: no such file or function, an exception inside, or a result that is no module.
    """
    model = call_function(arch, setting="arch", expected=EXPECTED)
    if not isinstance(model, nn.Module):
        raise ClusterqError(f"{arch} returned {type(model).__name__}; {EXPECTED}.", setting="arch")
    if isinstance(model, torch.jit.ScriptModule):
        raise ClusterqError(
            f"{arch} returned a TorchScript module, whose layers cannot be replaced; return the module that it was made from.",
            setting="arch",
        )
    if any(value.is_meta for value in (*model.parameters(), *model.buffers())):
        raise ClusterqError(
            f"{arch} returned a module on torch's meta device, which holds no values; build it on the CPU.", setting="arch"
        )
    return model


def call_function(
    where: str, *arguments: object, setting: str, expected: str, is_ready: Callable[[object], bool] | None = None
) -> object:
    """Call the function `path/to/file.py:function` with the arguments.

    Args:
        where: the file and the name in it.
        arguments: for the function.
        setting, expected: for the errors.
        is_ready: tells an object that is what is wanted already; it is returned as it is.

    Raises:
        ClusterqError: no such file or function, or an exception inside.
    """
    path_text, _, function_name = where.rpartition(":")
    path = Path(path_text)
    if not path_text or not function_name.isidentifier():
        raise ClusterqError(f"{where!r} names no function; {expected}.", setting=setting)
    if not path.is_file():
        raise ClusterqError(f"{path} does not exist; {expected}.", setting=setting)
    # One name for each file: dataclasses look their module up by it.
    name = f"_clusterq_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ClusterqError(f"{path} is no Python file; {expected}.", setting=setting)
    module = importlib.util.module_from_spec(specification)
    try:
        with _as_a_program(path, name, module):
            specification.loader.exec_module(module)
            function: Any = getattr(module, function_name, None)
            ready = is_ready is not None and is_ready(function)
            made = function if ready else function(*arguments) if callable(function) else None
    except (Exception, SystemExit) as error:  # the user's own code may raise anything, and a script may end itself
        raise ClusterqError(
            f"{where} failed with {describe_error(error)}{_own_line(error, path)}; mend the file and try again.",
            setting=setting,
        ) from error
    if not ready and not callable(function):
        what = "" if function is None else f", {function_name} is {type(function).__name__}"
        raise ClusterqError(f"{path} has no function {function_name}{what}; {expected}.", setting=setting)
    return made


@contextmanager
def _as_a_program(path: Path, name: str, module: ModuleType) -> Iterator[None]:
    """Let a file import the files beside it, as `python file.py` does.

    Afterwards these are forgotten again, so that another file may have other ones of the same names.
    """
    folder = str(path.resolve().parent)
    before = set(sys.modules)
    sys.modules[name] = module
    sys.path.insert(0, folder)
    # A file that has just been written may be newer than what was listed of its folder.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        for other in set(sys.modules) - before - {name}:
            file = getattr(sys.modules[other], "__file__", None)
            if file is not None and Path(file).resolve().is_relative_to(folder):
                del sys.modules[other]


def _own_line(error: BaseException, path: Path) -> str:
    """Name the line of the user's own folder where an error arose; empty where it arose elsewhere."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" ({Path(error.filename).name}, line {error.lineno})"
    folder = path.resolve().parent
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve().is_relative_to(folder)
    ]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})" if own else ""
