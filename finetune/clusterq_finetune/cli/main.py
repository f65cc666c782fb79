"""`clusterq-finetune`: the command line. Torch is imported only once a command runs, so that --help is quick."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clusterq_cli.app import App, Debug, Json, Quiet, TimeBudget, brief_help, version_option
from clusterq_cli.flags import with_flags
from clusterq_cli.help import EXIT_CODES, examples
from clusterq_cli.main import run_guarded, run_to_end, same_command, say_begin
from clusterq_cli.report import add_report
from clusterq_common.errors import ClusterqError
from clusterq_common.escape import without_secrets
from clusterq_common.export.for_target import quant_for
from clusterq_common.progress.time_budget import parse_time_budget
from clusterq_common.settings import merged, need_sections, read_yaml, under_present_names
from clusterq_finetune.cli import deploy, figures, runs, students
from clusterq_finetune.cli import sharing as sharing_cli
from clusterq_finetune.cli.named_set import PLACES, SHARING, sharing_config
from clusterq_finetune.cli.options import Classes, PredictionsCsv, Probabilities, Target, print_lines
from clusterq_finetune.config import SECTIONS, FinetuneConfig, recipe_notes
from clusterq_finetune.data.layouts import LAYOUTS_OR_OWN

EXAMPLES = examples(
    "clusterq-finetune --shards out/ --bits w4a4 --val imagenet/val",
    "clusterq-finetune --shards out/ --bits w3a3 --recipe best",
    "clusterq-finetune --shards theirs/ --arch net.py:build --weights net.pth",
    "clusterq-finetune --shards out/ --bits w4a4 --resume",
)

PROGRAM = "clusterq-finetune"

BRIEF = brief_help(
    *("shards", "out", "bits", "recipe", "val", "arch", "weights", "target", "average_bits", "target_size", "max_drop"),
    *("epochs", "batch_size", "device", "threads", "seed", "time_budget", "config", "resume", "overwrite", "dry_run"),
    *("as_json", "quiet", "version"),
    shards="Synthetic images: a run of clusterq-gen, a folder of shards, or an address (hf://, s3://, gs://, https://)",
    recipe="How the student is made: calibrated (minutes), fast, best or paper (default: fast)",
    val="Real images, only to report accuracy at the end",
    average_bits="Choose each layer's weight bits so that their mean is at most this",
    target_size="Choose each layer's weight bits so that the model is at most this large: 400kB",
    max_drop="Choose each layer's weight bits for the smallest model that loses at most so many points",
    epochs="Passes over the shards (default: 5; best: 10; paper: 200; calibrated: 0)",
)

app = App(brief=BRIEF, help="Turn a classifier into a low-bit one from synthetic shards, and evaluate it.")


@app.callback(invoke_without_command=True, epilog=f"{EXAMPLES}\n\n{EXIT_CODES}")
@with_flags({**SECTIONS, **SHARING}, typer.Option, recipe_notes())
def finetune(
    flags: dict[str, dict[str, Any]],
    context: typer.Context,
    shards: Annotated[
        str | None, typer.Option("--shards", help=f"A run folder of clusterq-gen, a folder of shards, or an address: {PLACES}")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the student.", show_default="finetune-BITS beside the shards")
    ] = None,
    val: Annotated[
        Path | None, typer.Option("--val", help=f"Real images to evaluate on, after the last step: {LAYOUTS_OR_OWN}.")
    ] = None,
    classes: Classes = None,
    target: Target = None,
    probabilities: Probabilities = False,
    predictions_csv: PredictionsCsv = None,
    config: Annotated[Path | None, typer.Option("--config", help="Start from a saved config.yaml; flags go on top.")] = None,
    time_budget: TimeBudget = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in --out first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    version: Annotated[bool, version_option(PROGRAM)] = False,
) -> None:
    """Fine-tune a low-bit student from shards."""
    if context.invoked_subcommand is not None:
        return

    def run() -> None:
        if target is not None and config is not None:
            raise ClusterqError(
                "--target: --config has all of the quantizers' settings already, expected one of the two; leave one out."
            )
        sharing = sharing_config(flags)
        flags.pop("sharing", None)  # asked of the set now, no setting of the run
        values, saved = _settings(flags, config, target)
        if shards is None and saved is None:
            raise ClusterqError("--shards is missing, expected a run folder or a folder of shards; try --shards out/.")
        say_begin(f"a student from {without_secrets(shards or str(config))}")
        from clusterq_common.sharing.place import saved_folder
        from clusterq_finetune import commands
        from clusterq_finetune.evaluation.predictions import KeptPredictions
        from clusterq_finetune.evaluation.summary import summary_lines
        from clusterq_finetune.prepare import Request

        source = shards or saved_folder(saved, config or Path())
        keep = KeptPredictions(probabilities, predictions_csv)
        seconds = None if time_budget is None else parse_time_budget(time_budget)
        request = Request(
            values, source, out, val, classes, resume, overwrite, dry_run, keep=keep, sharing=sharing, time_budget=seconds
        )
        result = commands.finetune(request)
        print_lines(summary_lines(result), result, as_json=as_json)

    run_guarded(run, debug=debug, quiet=quiet, resume=lambda: same_command(PROGRAM, "--resume"))


def _settings(flags: dict[str, dict[str, Any]], config: Path | None, target: Target) -> tuple[dict[str, Any], Any]:
    """Return the settings by section, and where the shards of a saved configuration were, None if it names none."""
    values: dict[str, Any] = dict(flags) if config is None else _on_top(config, flags)
    if target is not None:
        values["quant"] = quant_for(target, values.get("quant", {}))
    saved = values.pop("shards", None)
    values.pop("shards_digest", None)  # of the set then; the one now is its own
    return values, saved


def _on_top(config: Path, flags: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The values of a saved configuration, with the flags on top."""
    from clusterq_common.teacher.trust import refuse_foreign_code

    values = read_yaml(config)
    need_sections(FinetuneConfig, values, config)
    refuse_foreign_code(values, flags, config)
    return merged(under_present_names(FinetuneConfig, values), flags)


def draw_report(run: Path, out: Path | None, **asked: Any) -> None:
    """Draw a run's page; see `clusterq_report.command.report`."""
    from clusterq_report import command

    command.report(run, out, **asked)


app.command("quantize", brief=deploy.QUANTIZE_BRIEF, epilog=deploy.QUANTIZE_EXAMPLES)(deploy.quantize)
app.add_typer(students.app)
app.command("benchmark", epilog=deploy.BENCHMARK_EXAMPLES)(deploy.benchmark)
app.add_typer(runs.app)
add_report(
    app,
    draw_report,
    "Folder of a run, finished or not, or of a comparison.",
    "clusterq-finetune report out/finetune-w4a4",
    "clusterq-finetune report out/finetune-w4a4 --analyse",
)
app.add_typer(sharing_cli.app, name="shards")
app.add_typer(figures.app, name="figures")


def main() -> None:
    """Entry point of the console script."""
    run_to_end(app)


if __name__ == "__main__":
    main()
