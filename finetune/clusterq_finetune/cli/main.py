"""`clusterq-finetune`: the command line. Torch is imported only once a command runs, so that --help is quick."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clusterq_cli.app import (
    App,
    Arch,
    Debug,
    Json,
    OnDevice,
    Quiet,
    Threads,
    TimeBudget,
    Weights,
    named_teacher,
    version_option,
)
from clusterq_cli.flags import with_flags
from clusterq_cli.help import EXIT_CODES, examples
from clusterq_cli.main import run_guarded, run_to_end, same_command
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import Format, OnnxConfig
from clusterq_common.progress.console import print_json, print_result
from clusterq_common.progress.time_budget import parse_time_budget
from clusterq_common.settings import merged, read_yaml, under_present_names
from clusterq_finetune.cli import shards as shards_cli
from clusterq_finetune.cli.figures import app as figures_app
from clusterq_finetune.config import SECTIONS, EvaluationConfig, FinetuneConfig, recipe_notes
from clusterq_finetune.data.layouts import LAYOUTS_OR_OWN

EXAMPLES = examples(
    "clusterq-finetune --shards out/ --bits w4a4 --val imagenet/val",
    "clusterq-finetune --shards out/ --bits w3a3 --recipe best",
    "clusterq-finetune --shards theirs/ --arch net.py:build --weights net.pth",
    "clusterq-finetune --shards out/ --bits w4a4 --resume",
)

PROGRAM = "clusterq-finetune"

app = App(help="Turn a classifier into a low-bit one from synthetic shards, and evaluate it.")
app.add_typer(shards_cli.app, name="shards")
app.add_typer(figures_app, name="figures")

Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="Keep the probability of every class in the .npz, not of the five best alone.")
]
PredictionsCsv = Annotated[
    Path | None,
    typer.Option("--predictions-csv", help="Write a table with a line an image: name, label, predicted class, confidence."),
]
STUDENT_HELP = "Folder of a finished fine-tuning, or of a generator's run: its in-loop student."
Classes = Annotated[Path | None, typer.Option("--classes", help="File with one class folder name a line, in index order.")]


@app.callback(invoke_without_command=True, epilog=f"{EXAMPLES}\n\n{EXIT_CODES}")
@with_flags(SECTIONS, typer.Option, recipe_notes())
def finetune(
    flags: dict[str, dict[str, Any]],
    context: typer.Context,
    shards: Annotated[
        Path | None, typer.Option("--shards", help="A run folder of clusterq-gen, or a folder of shards.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the student.", show_default="finetune-BITS beside the shards")
    ] = None,
    val: Annotated[
        Path | None, typer.Option("--val", help=f"Real images to evaluate on, after the last step: {LAYOUTS_OR_OWN}.")
    ] = None,
    classes: Classes = None,
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
        values: dict[str, Any] = dict(flags) if config is None else _on_top(config, flags)
        saved = values.pop("shards", None)
        values.pop("shards_digest", None)  # of the set then; the one now is its own
        path = shards or saved
        if path is None:
            raise ClusterqError("--shards is missing, expected a run folder or a folder of shards; try --shards out/.")
        from clusterq_finetune import commands
        from clusterq_finetune.evaluation.predictions import KeptPredictions
        from clusterq_finetune.evaluation.summary import summary_lines

        keep = KeptPredictions(probabilities, predictions_csv)
        result = commands.finetune(
            values,
            Path(path),
            out,
            val,
            classes,
            resume=resume,
            overwrite=overwrite,
            dry_run=dry_run,
            keep=keep,
            time_budget=None if time_budget is None else parse_time_budget(time_budget),
        )
        _print(summary_lines(result), result, as_json=as_json)

    run_guarded(run, debug=debug, quiet=quiet, resume=lambda: same_command(PROGRAM, "--resume"))


@app.command(
    epilog=examples(
        "clusterq-finetune evaluate --student out/finetune-w4a4 --val imagenet/val",
        "clusterq-finetune evaluate --student out/finetune-w4a4 --val real/ --integer",
        "clusterq-finetune evaluate --onnx model.onnx --val real/ --json",
    )
)
@with_flags({"evaluation": EvaluationConfig}, typer.Option)
def evaluate(
    flags: dict[str, dict[str, Any]],
    val: Annotated[Path, typer.Option("--val", help=f"Real images: {LAYOUTS_OR_OWN}.")],
    student: Annotated[Path | None, typer.Option("--student", help=STUDENT_HELP)] = None,
    arch: Arch = None,
    onnx: Annotated[
        Path | None,
        typer.Option("--onnx", help="An exported model, in ONNX Runtime; with --student also how far the two are apart."),
    ] = None,
    optimise: Annotated[
        bool,
        typer.Option(
            "--optimise/--no-optimise",
            help="Let ONNX Runtime rewrite the graph of --onnx, as it does by itself (default: on).",
            show_default=False,
        ),
    ] = True,
    classes: Classes = None,
    integer: Annotated[
        bool, typer.Option("--integer", help="Also in integer arithmetic, as hardware computes it: simulated, slow.")
    ] = False,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Write each image's predictions as an .npz, as a fine-tuning does.")
    ] = None,
    probabilities: Probabilities = False,
    predictions_csv: PredictionsCsv = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images in a batch.")] = 256,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that decode images.")] = 0,
    device: OnDevice = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a saved student, or what it was exported to."""

    def run() -> None:
        from clusterq_finetune.evaluation.evaluate_saved import evaluate_saved
        from clusterq_finetune.evaluation.predictions import KeptPredictions
        from clusterq_finetune.evaluation.summary import summary_lines

        runtime = RuntimeConfig.validated({"device": device, "threads": threads})
        evaluation = EvaluationConfig.validated(flags.get("evaluation", {}))
        result = evaluate_saved(
            student,
            onnx,
            val,
            classes,
            evaluation,
            runtime,
            arch=arch,
            batch_size=batch_size,
            workers=workers,
            integer=integer,
            optimise=optimise,
            keep=KeptPredictions(probabilities, predictions_csv, predictions),
        )
        _print(summary_lines(result), result, as_json=as_json)

    run_guarded(run, debug=debug, quiet=quiet)


@app.command(
    epilog=examples(
        "clusterq-finetune export --student out/finetune-w8a8 --out model.onnx",
        "clusterq-finetune export --student s/ --format safetensors-int --out s.safetensors",
    )
)
@with_flags({"onnx": OnnxConfig}, typer.Option)
def export(
    flags: dict[str, dict[str, Any]],
    student: Annotated[Path, typer.Option("--student", help=STUDENT_HELP)],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    arch: Arch = None,
    kind: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="<name>",
            help="onnx: integers between QuantizeLinear and DequantizeLinear; safetensors-int: packed integers, scales and a description; "
            "pt2: torch.export's program.",
        ),
    ] = "onnx",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a saved student as a file that other programs run."""

    def run() -> None:
        from clusterq_finetune.export import export, summary_lines

        result = export(student, kind, out, flags.get("onnx", {}), arch=arch, overwrite=overwrite)
        _print(summary_lines(result), result, as_json=as_json)

    run_guarded(run, debug=debug, quiet=quiet)


@app.command(
    epilog=examples(
        "clusterq-finetune reproduce out/finetune-w4a4/result.json --out again/",
        "clusterq-finetune reproduce result.json --shards theirs/ --out again/",
    )
)
def reproduce(
    result: Annotated[Path, typer.Argument(help="result.json of a fine-tuning, or its folder.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new run.")] = Path("reproduced"),
    shards: Annotated[
        Path | None, typer.Option("--shards", help="Folder of the shards.", show_default="where they were then")
    ] = None,
    arch: Arch = None,
    weights: Weights = None,
    page: Annotated[
        bool, typer.Option("--report/--no-report", help="Draw report.html (default: on).", show_default=False)
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a fine-tuning again and say whether the same student came out; exit code 1 if not."""

    def run() -> None:
        from clusterq_finetune.reproduce import reproduce

        report = reproduce(result, out, shards, teacher=named_teacher(arch, weights), report=page)
        if not report:
            return
        print_result(f"{report['verdict']}: expected {report['expected'][:16]}, found {report['found'][:16]}")
        if "agreement" in report:
            print_result(
                f"weights at most {report['weights_apart']:.2g} apart, same class on {report['agreement']} of the held-out images"
            )
        if as_json:
            print_json(report)
        if report["verdict"] == "different":
            raise SystemExit(1)

    run_guarded(run, debug=debug, quiet=quiet)


@app.command(epilog=examples("clusterq-finetune compare out-*/finetune-w4a4 --out table.md"))
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of fine-tunings, or their result.json.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Write the table: .md, .csv, .json or .html by its ending.")] = None,
    debug: Debug = False,
) -> None:
    """One table of several fine-tunings; runs that differ in the seed alone share a row: mean and spread."""

    def run() -> None:
        from clusterq_common.files import atomic_write
        from clusterq_finetune import results

        if out is not None and out.suffix not in results.FORMATS:
            raise ClusterqError(f"--out: {out} ends in {out.suffix!r}, expected {', '.join(results.FORMATS)}; rename it.")
        rows = results.compare(runs)
        for line in results.as_markdown(rows).splitlines():
            print_result(line)
        if out is not None:
            atomic_write(out, results.FORMATS[out.suffix](rows))

    run_guarded(run, debug=debug)


@app.command(
    epilog=examples("clusterq-finetune report out/finetune-w4a4", "clusterq-finetune report out/finetune-w4a4 --analyse")
)
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not, or of a comparison.", show_default=False)],
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

    def go() -> None:
        from clusterq_report import command

        command.report(run, out, analyse=analyse, teacher=named_teacher(arch, weights))

    run_guarded(go, debug=debug, quiet=quiet)


def _on_top(config: Path, flags: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The values of a saved configuration, with the flags on top."""
    from clusterq_common.teacher.trust import refuse_foreign_code

    values = read_yaml(config)
    refuse_foreign_code(values, flags, config)
    return merged(under_present_names(FinetuneConfig, values), flags)


def _print(lines: list[str], result: dict[str, Any], *, as_json: bool) -> None:
    for line in lines:
        print_result(line)
    if as_json:
        print_json(result)


def main() -> None:
    """Entry point of the console script."""
    run_to_end(app)


if __name__ == "__main__":
    main()
