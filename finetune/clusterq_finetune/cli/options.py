"""Options of several commands, and the printing of their results."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clusterq_common.export.for_target import target_help
from clusterq_common.export.targets import TargetName
from clusterq_common.progress.console import print_json, print_result

Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="Keep the probability of every class in the .npz, not of the five best alone.")
]
PredictionsCsv = Annotated[
    Path | None,
    typer.Option("--predictions-csv", help="Write a table with a line an image: name, label, predicted class, confidence."),
]
Classes = Annotated[Path | None, typer.Option("--classes", help="File with one class folder name a line, in index order.")]
TARGET_HELP = (
    "The runtime; it sets what suits it and refuses what it cannot run. "
    f"{target_help()}. The page Deploy says what each one changes and why."
)
Target = Annotated[TargetName | None, typer.Option("--target", metavar="<name>", help=TARGET_HELP)]


def print_lines(lines: list[str], result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result for a person, and with `as_json` also for a program."""
    for line in lines:
        print_result(line)
    if as_json:
        print_json(result)
