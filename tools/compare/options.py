"""Options shared by the comparison tools."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

Arch = Annotated[str, typer.Option(help="As for clusterq-gen train.")]
Weights = Annotated[str | None, typer.Option(help="As for clusterq-gen train.")]
TeacherFlags = Annotated[str, typer.Option(help="More flags about the teacher, e.g. '--input-size 8 --mean 0.5'.")]
Val = Annotated[Path, typer.Option(help="Real images to evaluate on, at the end.")]
Out = Annotated[Path, typer.Option(help="Folder of all runs and of the table.")]
BitsList = Annotated[str, typer.Option(help="With commas between.")]
Seeds = Annotated[str, typer.Option(help="With commas between.")]
TrainFlags = Annotated[str, typer.Option(help="Flags of clusterq-gen train, for every set.")]
FinetuneFlags = Annotated[str, typer.Option(help="Flags of clusterq-finetune, for every run.")]
Images = Annotated[int, typer.Option(help="Images for each class, in every set that says nothing else.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of each run.")]


def common_flags(
    arch: str,
    weights: str | None,
    teacher_flags: str,
    train_flags: str,
    finetune_flags: str,
    threads: int | None,
) -> dict[str, list[str]]:
    """Return `teacher`, `train` and `finetune` of a `Comparison`."""
    limit = [] if threads is None else ["--threads", str(threads)]
    return {
        "teacher": ["--arch", arch, *shlex.split(teacher_flags), *([] if weights is None else ["--weights", weights])],
        "train": [*shlex.split(train_flags), *limit],
        "finetune": [*shlex.split(finetune_flags), *limit],
    }
