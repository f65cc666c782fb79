"""Run one stage of the proof in this process: prove.py starts it, with the benchmarks' modules on the path."""

from pathlib import Path
from typing import Annotated

import stage_cifar
import stage_imagenet
import stage_sound
import stage_steps
import typer
from packed import Pack
from record import Record

STAGES = {"sound": stage_sound, "steps": stage_steps, "paper-cifar": stage_cifar, "imagenet": stage_imagenet}


def main(
    name: Annotated[str, typer.Argument(help="The stage.")],
    pack: Annotated[Path, typer.Argument(help="Folder that pack.py made.")],
    out: Annotated[Path, typer.Argument(help="Folder of NAME.json.")],
    work: Annotated[Path, typer.Argument(help="Folder for runs, deleted by the caller.")],
    seconds: Annotated[float, typer.Argument(help="The stage's time.")],
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Small: only whether it works.")] = False,
) -> None:
    """Run it."""
    record = Record(out / f"{name}.json", seconds, rehearse)
    STAGES[name].run(record, Pack.open(pack), work)
    record.finish()


if __name__ == "__main__":
    typer.run(main)
