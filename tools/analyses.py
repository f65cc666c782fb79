"""The papers' analyses, one command each: effect of a setting of the generator's training on the student.

    python tools/analyses.py de-and-ema --arch resnet20_cifar10 --weights resnet20.safetensors --val cifar10/test --out analyses/

de-and-ema       ClusterQ, Table IV: with and without diversity enhancement and EMA centroids
ema-rate         ClusterQ, Fig. 8: the rate b of the centroids' update
diversity        ClusterQ, Fig. 9: the weight a3 of diversity enhancement
images           training images for each class, from one generator, whose cost is the first row's
batch-classes    distinct classes in a batch, at the same batch size: class-wise statistics from few or many samples
stored           fine-tuning on stored images against the student trained along with the generator, on images that nobody kept
adadfq           AdaDFQ's own ablations: each boundary, L_ds and L_as

At the papers' scale: --train-flags "--preset paper-imagenet" --arch resnet18 --val imagenet/val. Finished runs are kept, as by compare_methods.py, and each
analysis has a folder of its own in --out.
"""

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
from compare.runs import IN_LOOP, Comparison, Setting, markdown


def _values(flag: str, values: list[str]) -> dict[str, list[str]]:
    return {f"{flag.removeprefix('--')}-{value}": [flag, value] for value in values}


# Analysis -> set's name -> flags of clusterq-gen train (of emit in ONE_GENERATOR). The others are compared with the first set.
ANALYSES: dict[str, dict[str, list[str]]] = {
    "de-and-ema": {
        "full": [],
        "without-ema": ["--ema-rate", "0"],
        "without-de": ["--alpha-de", "0"],
        "without-both": ["--ema-rate", "0", "--alpha-de", "0"],
        "gdfq": ["--method", "gdfq"],
    },
    "ema-rate": _values("--ema-rate", ["0.2", "0", "0.1", "0.4", "0.6", "0.8", "1"]),
    "diversity": _values("--alpha-de", ["0.6", "0", "0.2", "0.4", "0.8", "1"]),
    "images": _values("--per-class", ["128", "1", "8", "64", "256", "512", "1024"]),
    "batch-classes": _values("--classes-per-batch", ["10", "5", "2", "1"]),
    "stored": {"full": []},
    "adadfq": {
        "full": ["--method", "adadfq"],
        "without-lower-boundary": ["--method", "adadfq", "--lambda-l", "0"],
        "without-upper-boundary": ["--method", "adadfq", "--lambda-u", "1"],
        "without-ds": ["--method", "adadfq", "--alpha-ds", "0"],
        "without-as": ["--method", "adadfq", "--alpha-as", "0"],
    },
}

ONE_GENERATOR = {"images"}


def main(
    analysis: Annotated[str, typer.Argument(help=f"One of {', '.join(ANALYSES)}.", show_default=False)],
    arch: Arch,
    val: Val,
    out: Out,
    weights: Weights = None,
    teacher_flags: TeacherFlags = "",
    bits: BitsList = "w4a4",
    recipe: Annotated[str, typer.Option(help="Recipe of clusterq-finetune; `calibrate` does not fine-tune.")] = "fast",
    seeds: Seeds = "0,1,2",
    train_flags: TrainFlags = "--preset quick",
    finetune_flags: FinetuneFlags = "",
    images: Images = 128,
    threads: Threads = None,
) -> None:
    """Run what is missing, then print the table."""

    def run() -> None:
        if analysis not in ANALYSES:
            raise ClusterqError(f"{analysis!r} is no analysis, expected one of {', '.join(ANALYSES)}.")
        sets = ANALYSES[analysis]
        comparison = Comparison(
            out=out / analysis,
            val=val,
            **common_flags(arch, weights, teacher_flags, train_flags, finetune_flags, threads),
            sets=sets,
            seeds=[int(seed) for seed in seeds.split(",")],
            images=images,
            one_generator=analysis in ONE_GENERATOR,
        )
        recipes = [recipe, *([IN_LOOP] if analysis == "stored" else [])]
        settings = [Setting(name, b, "all", r) for b in bits.split(",") for name in sets for r in recipes]
        print(markdown(comparison.table(settings)), end="")

    run_guarded(run)


if __name__ == "__main__":
    typer.run(main)
