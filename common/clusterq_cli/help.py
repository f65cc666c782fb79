"""Help on the terminal for both command lines: examples, exit codes, versions, and hints for mistyped names.

It does not depend on a command-line library: the programs mix `Readable` into its classes.
"""

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from textwrap import shorten
from typing import Any

from clusterq_common.errors import did_you_mean

EXIT_CODES = (
    "Exit codes: 0 done; 1 a defect, with its traceback; 2 something to correct, said in a sentence; 130 interrupted by Ctrl-C. "
    "docs/terminal.md has the rest: progress, --quiet, environment variables, completion."
)
COMPLETION_WIDTH = 60
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


# Each `super()` below is a command class that a type checker cannot know; hence `misc`.
class Readable:
    """Mixin for commands: flags are shown without a value, and errors suggest the nearest name."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters. No value is shown for flags, since they take none."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help. A flag's opposite is named in its description, because a separate column would narrow all others."""
        paired = [param for param in self.get_params(ctx) if getattr(param, "is_flag", False) and param.secondary_opts]
        kept = [(param.help, param.secondary_opts) for param in paired]
        for param in paired:
            text, opposite = param.help or "", param.secondary_opts[0]
            param.help, param.secondary_opts = f"{text.removesuffix('.')}; {opposite}: the opposite", []
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        finally:
            for param, (text, opposites) in zip(paired, kept, strict=True):
                param.help, param.secondary_opts = text, opposites

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the possible completions. Descriptions are cut to one line, because shells take a second line for another name."""
        completions: list[Any] = super().shell_complete(ctx, incomplete)  # type: ignore[misc]
        for item in completions:
            item.help = shorten(item.help, COMPLETION_WIDTH, placeholder="...") if item.help else item.help
        return completions

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and add a hint to the error if there is one."""
        try:
            rest: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        except Exception as error:
            add_hint(error)
            raise
        return rest


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
