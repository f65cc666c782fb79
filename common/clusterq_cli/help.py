"""Help on the terminal for both command lines: examples, exit codes, versions, and hints for mistyped names.

It needs no command-line library at run time: the programs mix `Readable` into the classes of theirs.
"""

import copy
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from textwrap import shorten
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from clusterq_common.errors import did_you_mean

# Type checkers have to know what the mixin extends.
if TYPE_CHECKING:
    from typer.core import TyperCommand as _Base
else:
    _Base = object

EXIT_CODES = (
    "Exit codes: 0 done; 1 a defect, with its traceback; 2 something to correct, said in a sentence; 130 interrupted by Ctrl-C. "
    "docs/terminal.md has the rest: progress, --quiet, environment variables, completion."
)
COMPLETION_WIDTH = 60
# Longest description of an option in the short help.
BRIEF_WIDTH = 120
# Key in click's `meta`: whether the help lists all options.
ALL_OPTIONS = "clusterq.all_options"
# Another one: the words of the command line.
ARGUMENTS = "clusterq.arguments"
# Wording of both pydantic and click.
CHOICES = re.compile(r"(?:Value error, )?'(?P<found>.*)' is not one of (?P<choices>'.+')\.?", re.DOTALL)


def examples(*commands: str) -> str:
    """Return the end of a command's help: command lines to copy.

    >>> print(examples("clusterq-gen doctor"))
    Examples:
    <BLANKLINE>
    $ clusterq-gen doctor
    """
    return "\n\n".join(["Examples:", "\n".join(f"$ {command}" for command in commands)])


def version_line(program: str) -> str:
    """Return the text of `--version`: the versions of the program and of torch, without importing either."""
    versions = {}
    for package in ("clusterq", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return f"{program} {versions['clusterq']} (torch {versions['torch']}, Python {platform.python_version()})"


class Readable(_Base):
    """Mixin for commands: flags are shown without a value, and errors suggest the nearest name.

    Attributes:
        brief: parameters of the short help, in its order: name -> short description, or "" for the beginning of the long one. `--help`
            then lists these, and `--help-all` all. Empty: `--help` lists all.
        left_out: gives, from the command line's values by parameter, the parameters that `--help-all` leaves out, and a line on how to
            see them; None: it leaves out none.
    """

    brief: Mapping[str, str] = MappingProxyType({})
    left_out: Callable[[dict[str, Any]], tuple[set[str], str]] | None = None
    _help_all: Any = None
    _brief_now = False

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters with `--help-all`, hidden where `--help` lists all. No value is shown for flags: they take none."""
        params: list[Any] = super().get_params(ctx)
        # One object for all calls: click compares parameters by identity.
        self._help_all = self._help_all or _help_all_option(self.get_help_option(ctx), hidden=not self.brief)
        params = [*params, self._help_all]
        if self._brief_now:
            places = {name: place for place, name in enumerate(self.brief)}
            params = sorted(params, key=lambda param: places.get(param.name, len(places)))
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help: the short one where there is one, unless all options are wanted."""
        params = self.get_params(ctx)
        self._brief_now = bool(self.brief) and not ctx.meta.get(ALL_OPTIONS)
        epilog = self.epilog
        try:
            with _restored(params):
                if self._brief_now:
                    _shorten(params, self.brief)
                else:
                    self._leave_out(ctx, params)
                    _name_opposites(params)
                _keep_brackets(params)
                super().format_help(ctx, formatter)
        finally:
            self._brief_now, self.epilog = False, epilog

    def _leave_out(self, ctx: Any, params: list[Any]) -> None:
        """Hide the parameters that `left_out` names, and say so before the examples."""
        if self.left_out is None:
            return
        # Values are not processed yet: `--help-all` comes before all others. The parser needs all flags, opposites among them.
        given, *_ = self.make_parser(ctx).parse_args(list(ctx.meta.get(ARGUMENTS, ())))
        names, line = self.left_out(given)
        for param in params:
            if param.name in names and hasattr(param, "hidden"):
                param.hidden = True
        self.epilog = "\n\n".join(part for part in (line, self.epilog) if part)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the possible completions. Descriptions are cut to one line, because shells take a second line for another name."""
        completions: list[Any] = super().shell_complete(ctx, incomplete)
        for item in completions:
            item.help = shorten(item.help, COMPLETION_WIDTH, placeholder="...") if item.help else item.help
        return completions

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and add a hint to the error if there is one."""
        if self.left_out is not None:
            ctx.meta[ARGUMENTS] = tuple(args)
        try:
            rest: list[str] = super().parse_args(ctx, args)
        except Exception as error:
            add_hint(error)
            raise
        return rest


def _help_all_option(help_option: Any, *, hidden: bool) -> Any:
    """Make `--help-all` from a command's `--help`."""

    def show(ctx: Any, param: Any, wanted: bool) -> None:
        ctx.meta[ALL_OPTIONS] = wanted
        help_option.callback(ctx, param, wanted)

    made = copy.copy(help_option)
    made.name, made.opts, made.callback, made.hidden = "help_all", ["--help-all"], show, hidden
    made.help = "Show all options, with their defaults, and exit."
    return made


@contextmanager
def _restored(params: list[Any]) -> Iterator[None]:
    """Restore the parameters afterwards as they were before."""
    names = ("hidden", "help", "rich_help_panel", "secondary_opts")
    kept = [(param, {name: getattr(param, name) for name in names if hasattr(param, name)}) for param in params]
    try:
        yield
    finally:
        for param, values in kept:
            for name, value in values.items():
                setattr(param, name, value)


def _shorten(params: list[Any], brief: Mapping[str, str]) -> None:
    """Hide parameters outside `brief`, and put the others into one panel with short descriptions."""
    for param in params:
        if param.name not in brief and param.name not in {"help", "help_all"}:
            param.hidden = True
        elif hasattr(param, "rich_help_panel"):
            text = brief.get(param.name) or _first_clause(param.help or "")
            param.help = text[:1].upper() + text[1:]
            param.rich_help_panel, param.secondary_opts = None, []


def _name_opposites(params: list[Any]) -> None:
    """Name a flag's opposite in its description, because a separate column would narrow all others."""
    for param in params:
        if getattr(param, "is_flag", False) and param.secondary_opts:
            text, opposite = param.help or "", param.secondary_opts[0]
            param.help, param.secondary_opts = f"{text.removesuffix('.')}; {opposite}: the opposite", []


def _keep_brackets(params: list[Any]) -> None:
    """Escape square brackets in descriptions, which typer would take for markup and drop."""
    from rich.markup import escape

    for param in params:
        if getattr(param, "help", None):
            param.help = escape(param.help)


def _first_clause(description: str) -> str:
    """Return a description up to its first semicolon, colon or full stop, with the default from its end.

    >>> _first_clause("number of images; more are better (default: 8)")
    'number of images (default: 8)'
    """
    text, _, remarks = description.partition(" (default: ")
    clause = shorten(re.split(r"(?<!e\.g)[;:.](?:\s|$)", text, maxsplit=1)[0], BRIEF_WIDTH, placeholder=" ...")
    return f"{clause} (default: {remarks}" if remarks else clause


def add_hint(error: Any) -> None:
    """Add the nearest option or choice to a usage error, in place. Other exceptions are left unchanged."""
    if not isinstance(getattr(error, "message", None), str):
        return
    if getattr(error, "possibilities", None):
        error.message += did_you_mean(error.option_name, list(error.possibilities))
        error.possibilities = None
    elif match := CHOICES.fullmatch(error.message):
        choices = re.findall(r"'([^']*)'", match["choices"])
        error.message = f"'{match['found']}' is not one of {', '.join(choices)}{did_you_mean(match['found'], choices)}"
