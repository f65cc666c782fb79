"""`clusterq-finetune evaluate` and `export`: the commands on a saved student. Torch is imported only once one of them runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clusterq_cli.app import App, Arch, Debug, Json, OnDevice, Quiet, Threads
from clusterq_cli.flags import with_flags
from clusterq_cli.help import examples
from clusterq_cli.main import run_guarded
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.export.config import Format, OnnxConfig
from clusterq_finetune.cli.options import Classes, PredictionsCsv, Probabilities, Target, print_lines
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.layouts import LAYOUTS_OR_OWN

app = App()

STUDENT_HELP = "Folder of a finished fine-tuning, or of a generator's run: its in-loop student."


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
        from clusterq_finetune.evaluation.evaluate_saved import Saved, evaluate_saved
        from clusterq_finetune.evaluation.predictions import KeptPredictions
        from clusterq_finetune.evaluation.real_images import RealImages
        from clusterq_finetune.evaluation.summary import summary_lines

        runtime = RuntimeConfig.validated({"device": device, "threads": threads})
        result = evaluate_saved(
            Saved(student, arch=arch, integer=integer, onnx=onnx, optimise=optimise),
            RealImages(val, classes, EvaluationConfig.validated(flags.get("evaluation", {}))),
            runtime,
            batch_size=batch_size,
            workers=workers,
            keep=KeptPredictions(probabilities, predictions_csv, predictions),
        )
        print_lines(summary_lines(result), result, as_json=as_json)

    run_guarded(run, debug=debug, quiet=quiet)


@app.command(
    epilog=examples(
        "clusterq-finetune export --student out/finetune-w8a8 --target ort-cpu --out model.onnx",
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
        Format | None,
        typer.Option(
            "--format",
            metavar="<name>",
            help="onnx: integers between QuantizeLinear and DequantizeLinear; safetensors-int: packed integers, scales and a description; "
            "pt2: torch.export's program.",
            show_default="onnx, or the target's",
        ),
    ] = None,
    target: Target = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a saved student as a file that other programs run."""

    def run() -> None:
        from clusterq_finetune.export import export, summary_lines

        result = export(student, kind, out, flags.get("onnx", {}), target=target, arch=arch, overwrite=overwrite)
        print_lines(summary_lines(result), result, as_json=as_json)

    run_guarded(run, debug=debug, quiet=quiet)
