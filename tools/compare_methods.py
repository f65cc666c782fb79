"""Methods compared fairly: one teacher, quantizer, budget and evaluation; several seeds; nothing chosen by real labels.

    python tools/compare_methods.py --arch resnet20_cifar10 --weights resnet20.safetensors --val cifar10/test --out compare/ \\
        --methods clusterq,gdfq,adadfq,noise --bits w4a4,w3a3 --recipes fast,best --seeds 0,1,2

One set of shards for each method and seed serves all bits, recipes and protocols. Whatever is finished is kept: the same command goes on after an
interruption, and a longer list adds to the table. Writes table.md and table.json into --out.

Methods are those of `clusterq-gen train --method`, and `noise` (standard normal images) and `real` (--real-upper-bound, real images that are not
evaluated on). Every student is evaluated once, at the end of its training, on all images; `even` and `odd` are halves of these: every
second file of each class in sorted order, from the first or from the second.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.guard import run_guarded
from compare.runs import PROTOCOLS, REAL, Comparison, Setting, markdown


def main(
    arch: Annotated[str, typer.Option(help="As for clusterq-gen train.")],
    val: Annotated[Path, typer.Option(help="Real images to evaluate on, at the end.")],
    out: Annotated[Path, typer.Option(help="Folder of all runs and of the table.")],
    weights: Annotated[str | None, typer.Option(help="As for clusterq-gen train.")] = None,
    teacher_flags: Annotated[str, typer.Option(help="More flags about the teacher, e.g. '--input-size 8 --mean 0.5'.")] = "",
    methods: Annotated[str, typer.Option(help="With commas between.")] = "clusterq,gdfq",
    bits: Annotated[str, typer.Option(help="With commas between.")] = "w4a4",
    protocols: Annotated[str, typer.Option(help=f"Of {', '.join(PROTOCOLS)}: which layers have the stated bits.")] = "all",
    recipes: Annotated[str, typer.Option(help="With commas between; `calibrate` does not fine-tune.")] = "fast",
    seeds: Annotated[str, typer.Option(help="With commas between.")] = "0,1,2",
    train_flags: Annotated[str, typer.Option(help="Flags of clusterq-gen train, for every method.")] = "--preset quick",
    finetune_flags: Annotated[str, typer.Option(help="Flags of clusterq-finetune, for every run.")] = "",
    images: Annotated[int, typer.Option(help="Images for each class, in every set.")] = 512,
    real_upper_bound: Annotated[Path | None, typer.Option(help="Real images in class folders, none of them in --val.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each run.")] = None,
) -> None:
    """Run what is missing, then print the table."""

    def run() -> None:
        names = list(dict.fromkeys(methods.split(",") + ([REAL] if real_upper_bound is not None else [])))
        settings = [
            Setting(m, b, p, r)
            for m in names
            for b in bits.split(",")
            for p in protocols.split(",")
            for r in recipes.split(",")
        ]
        unknown = [setting.protocol for setting in settings if setting.protocol not in PROTOCOLS]
        if unknown:
            raise ClusterqError(f"--protocols: {unknown[0]!r} is unknown, expected {', '.join(PROTOCOLS)}.")
        if REAL in names and real_upper_bound is None:
            raise ClusterqError(
                "--methods: real needs --real-upper-bound DIR, a folder of real images that are not evaluated on."
            )
        limit = [] if threads is None else ["--threads", str(threads)]
        comparison = Comparison(
            out=out,
            val=val,
            teacher=["--arch", arch, *shlex.split(teacher_flags), *([] if weights is None else ["--weights", weights])],
            sets={name: ["--method", name] for name in names},
            seeds=[int(seed) for seed in seeds.split(",")],
            train=[*shlex.split(train_flags), *limit],
            finetune=[*shlex.split(finetune_flags), *limit],
            images=images,
            real=real_upper_bound,
        )
        print(markdown(comparison.table(settings)), end="")

    run_guarded(run)


if __name__ == "__main__":
    typer.run(main)
