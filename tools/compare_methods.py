"""Fair comparison of methods: one teacher, quantizer, budget and evaluation; several seeds; no selection by real labels.

    python tools/compare_methods.py --arch resnet20_cifar10 --weights resnet20.safetensors --val cifar10/test --out compare/ \\
        --methods clusterq,gdfq,adadfq,noise --bits w4a4,w3a3 --recipes fast,best --seeds 0,1,2

One set of shards for each method and seed is used for all bits, recipes and protocols. Finished work is kept: the same command
continues after an interruption, and a longer list adds to the table. It writes table.md, table.json and report.html into --out.

Methods are those of `clusterq-gen train --method`, and `noise` (standard normal images) and `real` (--real-upper-bound, real images that are not
evaluated on). Every student is evaluated once, at the end of its training, on all images; `even` and `odd` are halves of these: every
second file of each class in sorted order, from the first or from the second.
"""

from pathlib import Path
from typing import Annotated

import typer

from clusterq_cli.main import run_guarded
from clusterq_common.errors import ClusterqError
from compare.options import (
    Arch,
    BitsList,
    FinetuneFlags,
    Images,
    Out,
    Seeds,
    TeacherFlags,
    Threads,
    TrainFlags,
    Val,
    Weights,
    common_flags,
)
from compare.runs import IN_LOOP, NOISE, PROTOCOLS, REAL, Comparison, Setting, markdown


def main(
    arch: Arch,
    val: Val,
    out: Out,
    weights: Weights = None,
    teacher_flags: TeacherFlags = "",
    methods: Annotated[str, typer.Option(help="With commas between.")] = "clusterq,gdfq",
    bits: BitsList = "w4a4",
    protocols: Annotated[str, typer.Option(help=f"Of {', '.join(PROTOCOLS)}: which layers have the stated bits.")] = "all",
    recipes: Annotated[
        str, typer.Option(help="With commas between; `calibrate` does not fine-tune, `in-loop` is the generator's own student.")
    ] = "fast",
    seeds: Seeds = "0,1,2",
    train_flags: TrainFlags = "--preset quick",
    finetune_flags: FinetuneFlags = "",
    images: Images = 128,
    real_upper_bound: Annotated[Path | None, typer.Option(help="Real images in class folders, none of them in --val.")] = None,
    threads: Threads = None,
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
            if r != IN_LOOP or m not in {NOISE, REAL}
        ]
        unknown = [setting.protocol for setting in settings if setting.protocol not in PROTOCOLS]
        if unknown:
            raise ClusterqError(f"--protocols: {unknown[0]!r} is unknown, expected {', '.join(PROTOCOLS)}.")
        if REAL in names and real_upper_bound is None:
            raise ClusterqError(
                "--methods: real needs --real-upper-bound DIR, a folder of real images that are not evaluated on."
            )
        comparison = Comparison(
            out=out,
            val=val,
            **common_flags(arch, weights, teacher_flags, train_flags, finetune_flags, threads),
            sets={name: ["--method", name] for name in names},
            seeds=[int(seed) for seed in seeds.split(",")],
            images=images,
            real=real_upper_bound,
        )
        print(markdown(comparison.table(settings)), end="")

    run_guarded(run)


if __name__ == "__main__":
    typer.run(main)
