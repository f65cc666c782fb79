"""The command `report`, which both programs have."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from clusterq_cli.app import App, Arch, Debug, Quiet, Weights
from clusterq_cli.help import examples
from clusterq_cli.main import run_guarded
from clusterq_common.teacher.spec import named_teacher


def add_report(app: App, draw: Callable[..., Any], run_help: str, *commands: str) -> None:
    """Add the command `report` to a program.

    Args:
        app: the program.
        draw: draws the page: `draw(run, out, analyse=..., teacher=...)`.
        run_help: help of the command's argument.
        commands: examples.
    """

    @app.command(epilog=examples(*commands))
    def report(
        run: Annotated[Path, typer.Argument(help=run_help, show_default=False)],
        out: Annotated[Path | None, typer.Option("--out", help="The page.", show_default="RUN/report.html")] = None,
        analyse: Annotated[
            bool, typer.Option("--analyse", help="Measure the networks again first; needs the teacher's weights.")
        ] = False,
        arch: Arch = None,
        weights: Weights = None,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        """Draw a run as one page that opens in any browser. Every run draws its own when it ends."""
        teacher = named_teacher(arch, weights)
        run_guarded(lambda: draw(run, out, analyse=analyse, teacher=teacher), debug=debug, quiet=quiet)
