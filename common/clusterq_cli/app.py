"""A typer application with readable help, and the options that every command has."""

import io
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from itertools import takewhile
from typing import Annotated, Any, TextIO

import typer
from typer.core import HAS_RICH, TyperCommand, TyperGroup

from clusterq_cli.flags import flag_of
from clusterq_cli.help import Readable, version_line
from clusterq_common.device.config import Device
from clusterq_common.setting_names import settings_spelled_by


class _InFlags(Readable):
    """Mixin for readable commands: texts made while it runs name settings as its flags."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        params = self.get_params(ctx)
        with settings_spelled_by(lambda name, value: flag_of(name, value, params)):
            return super().invoke(ctx)


class Command(_InFlags, TyperCommand):
    """A command with readable help."""


class Group(_InFlags, TyperGroup):
    """A command group with readable help: its commands before its options."""

    # What the help now leaves out: options or commands.
    _left_out = ""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; none while the help lists the commands."""
        return [] if self._left_out == "options" else super().get_params(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands; none while the help lists the options."""
        return [] if self._left_out == "commands" else super().list_commands(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help. typer prints options first; so both parts are printed into texts, which are then put together."""
        if not HAS_RICH:
            super().format_help(ctx, formatter)
            return
        commands = self._help_without("options", ctx, formatter)
        options = self._help_without("commands", ctx, formatter)
        both = list(takewhile(lambda pair: pair[0] == pair[1], zip(commands, options, strict=False)))
        typer.echo("".join([*commands, *options[len(both) :]]), nl=False)

    def _help_without(self, part: str, ctx: Any, formatter: Any) -> list[str]:
        """Return the lines of the help without a part of it. The end belongs to the options' part."""
        kept, epilog = _Kept(sys.stdout), self.epilog
        self._left_out, self.epilog = part, epilog if part == "commands" else None
        try:
            with redirect_stdout(kept):
                super().format_help(ctx, formatter)
        finally:
            self._left_out, self.epilog = "", epilog
        return kept.getvalue().splitlines(keepends=True)


class _Kept(io.StringIO):
    """A text that is written as if to `stream`: with colours and boxes where that shows them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    # `io` has a property here, which its annotations call an attribute.
    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()


class App(typer.Typer):
    """A typer application made of these commands.

    Args:
        brief: parameters in the program's own short help; see `Readable`.
    """

    def __init__(self, brief: Mapping[str, str] | None = None, **about: Any) -> None:
        super().__init__(cls=type("Group", (Group,), {"brief": brief or {}}), **about)

    def command(
        self,
        name: str | None = None,
        brief: Mapping[str, str] | None = None,
        left_out: Callable[[dict[str, Any]], tuple[set[str], str]] | None = None,
        **about: Any,
    ) -> Callable[[Any], Any]:
        """Add a command, as typer does; `brief` has the parameters of its short help, `left_out` is for the long one, see `Readable`."""
        own = {"brief": brief or {}, "left_out": left_out and staticmethod(left_out)}
        return super().command(name, cls=type("Command", (Command,), own), **about)


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
        help="Plan steps and images so that a new run ends within about this time: 45s, 30m, 1h30m. A few timed steps tell the pace here.",
    ),
]
# Descriptions in short helps, where the beginning of the long one does not say enough.
BRIEF = {
    "arch": "Architecture: a pytorchcv name (resnet18, ...) or your own factory, path/to/file.py:function",
    "weights": "Weights of the classifier: safetensors or a PyTorch state dict",
    "input_size": "Size of the input image: 224, or 64x128 for height x width; needed with a factory",
    "in_channels": "Number of channels of the input image; needed with a factory",
    "num_classes": "Number of classes; needed with a factory",
    "mean": "Normalisation mean per channel, pixels in [0, 1], e.g. 0.5,0.5,0.5; needed with a factory",
    "std": "Normalisation standard deviation per channel; needed with a factory",
    "bits": "Bits of weights and activations: w4a4, w8a8, w4a8, ... (default: w4a4)",
    "device": "auto, cpu or cuda (default: auto)",
    "threads": "CPU threads (default: all cores)",
    "seed": "Seed of every random draw (default: 0)",
    "target": "Runtime: ort-cpu, ort-cuda, openvino, tensorrt, qnn or executorch",
    "config": "Start from a saved config.yaml; flags go on top",
    "time_budget": "Plan steps and images to end within this time: 45s, 30m, 1h30m",
    "dry_run": "Print the plan with its estimated time; write nothing",
    "quiet": "Print warnings, errors and the result alone",
}


def brief_help(*names: str, **texts: str) -> dict[str, str]:
    """Return the parameters of a short help, in this order.

    Args:
        names: of the parameters.
        texts: descriptions by name, in place of those of `BRIEF`; other parameters have the beginning of their long description.
    """
    if unknown := texts.keys() - set(names):
        raise ValueError(f"texts for parameters that are not listed: {sorted(unknown)}")
    return {name: texts.get(name) or BRIEF.get(name, "") for name in names}


Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, last on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no remarks: warnings, errors and the result alone.")]
