"""Options that several commands of `clusterq-finetune` have."""

from pathlib import Path
from typing import Annotated

import typer

from clusterq_common.export.for_target import target_help
from clusterq_common.export.targets import TargetName

Classes = Annotated[Path | None, typer.Option("--classes", help="File with one class folder name a line, in index order.")]
TARGET_HELP = (
    "The runtime; it sets what suits it and refuses what it cannot run. "
    f"{target_help()}. What each one changes and why: docs/deploy.md."
)
Target = Annotated[TargetName | None, typer.Option("--target", metavar="<name>", help=TARGET_HELP)]
