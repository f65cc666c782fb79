"""How this program's commands appear on a terminal: typer's, made readable."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from clusterq_common.runtime.terminal import Readable, version_line

PROGRAM = "clusterq-gen"


class Command(Readable, TyperCommand):
    """A command."""


class Group(Readable, TyperGroup):
    """A command with commands of its own."""


class App(typer.Typer):
    """A command line of such commands."""

    def __init__(self, **about: Any) -> None:
        super().__init__(cls=Group, **about)

    def command(self, name: str | None = None, **about: Any) -> Callable[[Any], Any]:
        """Add a command, as typer does."""
        return super().command(name, cls=Command, **about)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version_line(PROGRAM))
        raise typer.Exit


Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no remarks: warnings, errors and the result alone.")]
Version = Annotated[bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=_print_version)]
