"""A typer application with readable help, and the options that every command has."""

from collections.abc import Callable, Mapping
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
    """A typer application made of these commands.

    Args:
        brief: parameters in the program's own short help; see `Readable`.
    """

    def __init__(self, brief: Mapping[str, str] | None = None, **about: Any) -> None:
        super().__init__(cls=type("Group", (Group,), {"brief": brief or {}}), **about)

    def command(self, name: str | None = None, brief: Mapping[str, str] | None = None, **about: Any) -> Callable[[Any], Any]:
        """Add a command, as typer does; `brief` has the parameters of its short help."""
        return super().command(name, cls=type("Command", (Command,), {"brief": brief or {}}), **about)


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
# Descriptions in short helps, where the beginning of the long one does not say enough.
BRIEF = {
    "arch": "Architecture: a pytorchcv name (resnet18, ...) or your own factory, path/to/file.py:function",
    "weights": "Weights of the classifier: safetensors or a PyTorch state dict",
    "input_size": "Size of the input image: 224, or 64x128 for height x width",
    "num_classes": "Number of classes",
    "mean": "Normalisation mean per channel, pixels in [0, 1], e.g. 0.5,0.5,0.5",
    "std": "Normalisation standard deviation per channel",
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


def named_teacher(arch: str | None, weights: str | None) -> dict[str, str]:
    """The fields of a teacher's settings that the command line gives."""
    return {name: value for name, value in (("arch", arch), ("weights", weights)) if value is not None}
