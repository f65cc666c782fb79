"""A typer application with readable help, and the options that every command has."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from clusterq_cli.flags import flag_of
from clusterq_cli.help import Readable, version_line
from clusterq_common.device.config import Device
from clusterq_common.setting_names import settings_spelled_by


# `self` and `super()` are a command class that a type checker cannot know; hence `attr-defined` and `misc`.
class _InFlags:
    """Mixin for commands: texts made while it runs name settings as its flags."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        params = self.get_params(ctx)  # type: ignore[attr-defined]
        with settings_spelled_by(lambda name, value: flag_of(name, value, params)):
            return super().invoke(ctx)  # type: ignore[misc]


class Command(_InFlags, Readable, TyperCommand):
    """A command with readable help."""


class Group(_InFlags, Readable, TyperGroup):
    """A command group with readable help."""


class App(typer.Typer):
    """A typer application made of these commands."""

    def __init__(self, **about: Any) -> None:
        super().__init__(cls=Group, **about)

    def command(self, name: str | None = None, **about: Any) -> Callable[[Any], Any]:
        """Add a command, as typer does."""
        return super().command(name, cls=Command, **about)


def version_option(program: str) -> Any:
    """Make the `--version` option of a program."""

    def print_version(wanted: bool) -> None:
        if wanted:
            typer.echo(version_line(program))
            raise typer.Exit

    return typer.Option("--version", help="Say which version this is.", is_eager=True, callback=print_version)


# For commands that read the teacher's name from a folder: code is run only where the command line names it.
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        help="The teacher's architecture; needed where the folder is not of your own making and names a factory.",
        show_default="as the run has it",
    ),
]
Weights = Annotated[str | None, typer.Option("--weights", help="The teacher's weights.", show_default="as the run has it")]
OnDevice = Annotated[Device, typer.Option("--device", metavar="<name>", help="Device of the networks: auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of torch.")]
TimeBudget = Annotated[
    str | None,
    typer.Option(
        "--time-budget",
        metavar="<time>",
        help="At most so long, as 45s, 30m or 1h30m: a new run's steps and images are planned to fit what a few timed steps take here.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, last on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no remarks: warnings, errors and the result alone.")]


def named_teacher(arch: str | None, weights: str | None) -> dict[str, str]:
    """The fields of a teacher's settings that the command line gives."""
    return {name: value for name, value in (("arch", arch), ("weights", weights)) if value is not None}
