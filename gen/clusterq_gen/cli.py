"""`clusterq-gen`: the command line. Torch is imported only once a command runs, so that --help is quick."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clusterq_cli.app import App, Arch, Debug, Json, Quiet, TimeBudget, Weights, brief_help, version_option
from clusterq_cli.flags import with_flags
from clusterq_cli.help import EXIT_CODES, examples
from clusterq_cli.main import run_guarded, run_to_end, same_command, say_begin
from clusterq_cli.report import add_report
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.progress.console import info, print_json
from clusterq_common.progress.time_budget import parse_time_budget
from clusterq_common.run.run_folder import CONFIG
from clusterq_common.teacher.spec import named_teacher, shown_arch
from clusterq_gen.config import SECTIONS, EmitConfig, GenConfig, Preset
from clusterq_gen.given import Meant, by_input_size, meant_by, on_top, saved_config
from clusterq_gen.method_options import left_out
from clusterq_gen.presets import preset_notes
from clusterq_gen.settings_lines import settings_lines

PROGRAM = "clusterq-gen"

OF_SHARDS = {
    "per_class": "Training images of each class (default: 512; paper-imagenet: 200; quick: 128)",
    "heldout_per_class": "Images of each class in the held-out split (default: a tenth of --per-class)",
}
TRAIN_BRIEF = brief_help(
    *("arch", "weights", "input_size", "in_channels", "num_classes", "mean", "std", "preset", "method", "bits", "out"),
    *(
        "per_class",
        "images",
        "heldout_per_class",
        "epochs",
        "steps_per_epoch",
        "batch_size",
        "device",
        "cuda_graphs",
        "threads",
        "seed",
    ),
    *("time_budget", "config", "resume", "overwrite", "dry_run", "quiet"),
    preset="Size of the run: quick (two CPU cores), paper-cifar, paper-imagenet or auto",
    method="clusterq, gdfq, adadfq, qimera, zeroq, dsg, intraq, or your own file.py:function (default: clusterq)",
    bits="Bits of the student within the training (default: w4a4)",
    epochs="Generator epochs (default: 400; quick: 16)",
    batch_size="Images in a batch (default: 200; paper-imagenet: 16; quick: 100)",
    cuda_graphs="Replay recorded steps on a GPU, several times faster for small networks",
    images="Most training images altogether (quick: 2560)",
    **OF_SHARDS,
)
EMIT_BRIEF = brief_help(
    *("run", "out", "per_class", "images", "heldout_per_class", "refine_steps", "labels", "seed", "device", "threads", "arch"),
    *("weights", "overwrite", "quiet"),
    labels="Labels of the images: asked (the class asked for) or teacher (the class it sees)",
    refine_steps="Steps that optimise each image before the classifier judges it (default: 0)",
    **OF_SHARDS,
)

app = App(
    help="Learn an image generator from a trained classifier alone, and write synthetic shards.",
    no_args_is_help=True,
    epilog=EXIT_CODES,
)


@app.callback()
def program(version: Annotated[bool, version_option(PROGRAM)] = False) -> None:
    """Handle options that stand before a command."""


@app.command(
    brief=TRAIN_BRIEF,
    left_out=left_out,
    epilog=examples(
        "clusterq-gen train --arch resnet18 --out out/",
        "clusterq-gen train --arch resnet20_cifar10 --preset quick --bits w4a4",
        "clusterq-gen train --arch net.py:build --weights net.pth --input-size 32 --in-channels 3 --num-classes 10 --mean 0.5,0.5,0.5 "
        "--std 0.5,0.5,0.5",
        "clusterq-gen train --config out/config.yaml --seed 1 --out out-1/",
        "clusterq-gen train --arch resnet18 --out out/ --resume",
    ),
)
@with_flags(SECTIONS, typer.Option, preset_notes())
def train(
    flags: dict[str, dict[str, Any]],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("out"),
    preset: Annotated[
        Preset,
        typer.Option(
            "--preset",
            metavar="<name>",
            help="Source of the defaults: paper-cifar, paper-imagenet, quick (two CPU cores), or auto: paper-imagenet for inputs above "
            "64 pixels, else paper-cifar.",
        ),
    ] = "auto",
    config: Annotated[Path | None, typer.Option("--config", help="Start from a saved config.yaml; flags go on top.")] = None,
    time_budget: TimeBudget = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in --out first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a generator for a classifier, or optimise images without one, then write class-labelled shards."""

    def run() -> None:
        seconds = None if time_budget is None else parse_time_budget(time_budget)
        resumed = resume and (out / CONFIG).is_file()
        if resumed:
            meant = Meant([saved_config(out, flags, budget=seconds is not None)])
        elif config is not None:
            meant = Meant([GenConfig.validated(on_top(config, flags))])
        else:
            meant = meant_by(flags, preset)
        first = meant.plans[0]
        say_begin(f"{shown_arch(first.teacher.arch)} to {out}")
        # The plan of a dry run says all of this, with the classifier's part.
        for line in [] if dry_run else settings_lines(meant, None if resumed else seconds):
            info(line)
        from clusterq_gen import commands

        settings = by_input_size(flags, first.teacher) if meant.by_size else first
        result = commands.train(settings, out, resume=resume, overwrite=overwrite, dry_run=dry_run, time_budget=seconds)
        if as_json:
            print_json(result)

    run_guarded(run, debug=debug, quiet=quiet, resume=lambda: same_command(PROGRAM, "--resume"))


@app.command(
    brief=EMIT_BRIEF,
    epilog=examples(
        "clusterq-gen emit --run out/ --per-class 1000",
        "clusterq-gen emit --run out/ --per-class 200 --seed 7 --out shards-7/",
    ),
)
@with_flags({"emit": EmitConfig, "runtime": RuntimeConfig}, typer.Option)
def emit(
    flags: dict[str, dict[str, Any]],
    run: Annotated[Path, typer.Option("--run", help="Folder of a finished `clusterq-gen train`.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the shards.", show_default="RUN/shards")] = None,
    arch: Arch = None,
    weights: Weights = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the shards there; otherwise images are added.")
    ] = False,
    page: Annotated[
        bool | None,
        typer.Option("--report/--no-report", help="Draw the run's report.html again.", show_default="as the run was made"),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write shards from a trained generator: more images per class, or images of another seed; or from a bank what it holds.

    Settings left out are those of the run.
    """

    def go() -> None:
        from clusterq_gen import commands

        teacher = named_teacher(arch, weights)
        commands.emit(
            run, flags.get("emit", {}), flags.get("runtime", {}), out, teacher=teacher, overwrite=overwrite, report=page
        )

    run_guarded(go, debug=debug, quiet=quiet, resume=lambda: same_command(PROGRAM))


def draw_report(run: Path, out: Path | None, **asked: Any) -> None:
    """Draw a run's page; see `clusterq_report.command.report`."""
    from clusterq_report import command

    command.report(run, out, **asked)


add_report(
    app,
    draw_report,
    "Folder of a run, finished or not.",
    "clusterq-gen report out/",
    "clusterq-gen report out/ --analyse --out page.html",
)


@app.command(epilog=examples("clusterq-gen doctor"))
def doctor(debug: Debug = False) -> None:
    """Check the installation: versions, device, threads, weights cache, and one training step on a tiny model."""

    def go() -> None:
        from clusterq_gen.doctor import examine

        examine()

    run_guarded(go, debug=debug)


def main() -> None:
    """Entry point of the console script."""
    run_to_end(app)


if __name__ == "__main__":
    main()
