"""`clusterq-finetune quantize` and `benchmark`: the command lines."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clusterq_cli.app import Arch, Debug, Json, Quiet, Threads, TimeBudget, Weights, brief_help
from clusterq_cli.flags import Sections, with_flags
from clusterq_cli.help import examples
from clusterq_cli.main import run_guarded, same_command, say_begin
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.targets import RuntimeName, TargetName
from clusterq_common.progress.console import info, print_json, print_result
from clusterq_common.progress.time_budget import parse_time_budget
from clusterq_common.quant.choice_config import BitChoice
from clusterq_common.quant.config import QuantConfig
from clusterq_common.teacher.spec import TeacherConfig, named_teacher
from clusterq_finetune.cli.named_set import PLACES, SHARING, set_folder
from clusterq_finetune.cli.options import TARGET_HELP, Classes
from clusterq_finetune.config import EvaluationConfig, RecipeName
from clusterq_finetune.data.layouts import LAYOUTS_OR_OWN

PROGRAM = "clusterq-finetune"
BENCHMARK_EXAMPLES = examples(
    "clusterq-finetune benchmark model.onnx --student out/finetune-w8a8",
    "clusterq-finetune benchmark model.onnx --float float.onnx --threads 1",
    "clusterq-finetune benchmark model.onnx --float float.onnx --runtime openvino",
    "clusterq-finetune benchmark model.onnx --student out/finetune-w8a8 --val real/ --out speed.json",
)
QUANTIZE_EXAMPLES = examples(
    "clusterq-finetune quantize --arch resnet18 --bits w8a8 --recipe calibrated --out model.onnx",
    "clusterq-finetune quantize --arch resnet20_cifar10 --bits w4a8 --preset quick --val real/ --out model.onnx",
    "clusterq-finetune quantize --arch net.py:build --weights net.pth --input-size 32 --in-channels 3 --num-classes 10 "
    "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --bits w8a8 --target tensorrt --out model.onnx",
)
QUANTIZE_BRIEF = brief_help(
    *("arch", "weights", "input_size", "in_channels", "num_classes", "mean", "std", "bits", "target", "recipe", "preset"),
    *("out", "val", "shards", "work", "with_preprocessing", "device", "threads", "seed", "time_budget", "overwrite", "dry_run"),
    *("as_json", "quiet"),
    out="The ONNX file to write; its report is written beside it",
    recipe="How the student is made: calibrated (minutes), fast, best or paper",
    preset="Size of the synthetic set: auto, quick, paper-cifar or paper-imagenet",
    val="Real images, only to report accuracy at the end",
)
QUANTIZE_SECTIONS: Sections = {
    "teacher": TeacherConfig,
    "quant": QuantConfig,
    "choice": BitChoice,
    "onnx": OnnxConfig,
    "evaluation": EvaluationConfig,
    "runtime": RuntimeConfig,
}
# The presets of clusterq-gen, which is another program.
Preset = Literal["auto", "quick", "paper-cifar", "paper-imagenet"]


@with_flags({"evaluation": EvaluationConfig, **SHARING}, typer.Option)
def benchmark(
    flags: dict[str, dict[str, Any]],
    model: Annotated[Path, typer.Argument(help="An ONNX file that clusterq exported.", show_default=False)],
    float_file: Annotated[
        Path | None, typer.Option("--float", help="A float32 ONNX file for the same images, to compare with.")
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(
            "--student",
            help="The run that the file is from: its teacher is exported in float to compare with, unless --float is given, and the "
            "figures go into the run's report.",
        ),
    ] = None,
    val: Annotated[Path | None, typer.Option("--val", help=f"Real images to evaluate on: {LAYOUTS_OR_OWN}.")] = None,
    classes: Classes = None,
    shards: Annotated[
        str | None,
        typer.Option(
            "--shards", help=f"Synthetic images to compare on: a run of clusterq-gen, shards, or an address: {PLACES}"
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Images in a call; may be repeated.", show_default="1, 16")
    ] = None,
    runtime: Annotated[
        RuntimeName,
        typer.Option(
            "--runtime",
            metavar="<name>",
            help="What runs both files: onnxruntime, or openvino (the extra of that name), both on the CPU.",
        ),
    ] = "onnxruntime",
    turns: Annotated[int, typer.Option("--turns", help="Timed calls of each file at each batch size; 6 or more.")] = 15,
    out: Annotated[Path | None, typer.Option("--out", help="Write the result as JSON.")] = None,
    arch: Arch = None,
    weights: Weights = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure an exported ONNX file in ONNX Runtime or OpenVINO: bytes, latency, integer kernels, accuracy, beside its float export."""

    def run() -> None:
        if shards is None and flags.get("sharing"):
            raise ClusterqError(
                "there are no --shards that it is about, expected a set; name one, or leave it out.",
                setting=next(iter(flags["sharing"])),
            )
        from clusterq_finetune.benchmark.command import benchmark
        from clusterq_finetune.benchmark.request import FloatSource, Timing
        from clusterq_finetune.benchmark.summary import summary_lines
        from clusterq_finetune.evaluation.real_images import named_images
        from clusterq_report.command import report_at_end

        result = benchmark(
            model,
            FloatSource(float_file, student, named_teacher(arch, weights)),
            Timing(batch, turns, threads, runtime),
            real=named_images(val, classes, EvaluationConfig.validated(flags.get("evaluation", {}))),
            shards=None if shards is None else set_folder(shards, flags),
            out=out,
        )
        for line in summary_lines(result):
            print_result(line)
        if student is not None:
            report_at_end(student, f"clusterq-finetune report {shlex.quote(str(student))}")
        if as_json:
            print_json(result)

    run_guarded(run, debug=debug, quiet=quiet)


@with_flags(QUANTIZE_SECTIONS, typer.Option)
def quantize(
    flags: dict[str, dict[str, Any]],
    out: Annotated[Path, typer.Option("--out", help="The ONNX file to write; its report is written beside it.")],
    target: Annotated[TargetName, typer.Option("--target", metavar="<name>", help=TARGET_HELP)] = "ort-cpu",
    val: Annotated[
        Path | None, typer.Option("--val", help=f"Real images to evaluate on, after the last step: {LAYOUTS_OR_OWN}.")
    ] = None,
    classes: Classes = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            help="Folder of the stages; an interrupted command goes on with them.",
            show_default="OUT-work beside --out",
        ),
    ] = None,
    recipe: Annotated[
        RecipeName,
        typer.Option(
            "--recipe",
            metavar="<name>",
            help="calibrated: nothing is trained, images to calibrate on are enough, minutes; fast, best, paper: as for fine-tuning.",
        ),
    ] = "fast",
    preset: Annotated[
        Preset | None,
        typer.Option(
            "--preset",
            metavar="<name>",
            help="Of the set: auto, quick, paper-cifar or paper-imagenet, as for clusterq-gen train; --recipe calibrated has a set of its own.",
            show_default="auto",
        ),
    ] = None,
    time_budget: TimeBudget = None,
    set_flags: Annotated[
        str, typer.Option("--set-flags", help="More flags of clusterq-gen train, in quotes, as '--per-class 64'.")
    ] = "",
    shards: Annotated[Path | None, typer.Option("--shards", help="A set that is there already, instead of a new one.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn a classifier into a low-bit ONNX file with one command: synthetic images, fine-tuning, export, benchmark, report."""

    def run() -> None:
        if "arch" not in flags.get("teacher", {}):
            raise ClusterqError(
                "--arch is missing, expected a pytorchcv model name or path/to/file.py:factory; try --arch resnet18."
            )
        if set_flags and shards is not None:
            raise ClusterqError("--set-flags: --shards names a set that is there, expected one of the two; leave one out.")
        if preset is not None and (shards is not None or recipe == "calibrated"):
            other = (
                "--shards names a set that is there"
                if shards is not None
                else "--recipe calibrated makes a set of its own kind"
            )
            raise ClusterqError(f"--preset: {other}, expected no preset; leave it out.")
        say_begin(f"{flags['teacher']['arch']}, recipe {recipe}, for {target}, to {out}")
        stages = work or out.with_name(f"{out.stem}-work")
        info(f"stages: set of images, fine-tuning, export, benchmark, report; in {stages}; their times follow")
        from clusterq_finetune.benchmark.summary import summary_lines
        from clusterq_finetune.export import summary_lines as export_lines
        from clusterq_finetune.quantize.command import plan_of, quantize
        from clusterq_finetune.quantize.plan import set_flags_of

        given = {section: dict(values) for section, values in flags.items()}
        bits = given.get("quant", {}).pop("bits", QuantConfig().bits)
        plan = plan_of(
            given,
            bits=bits,
            target=target,
            recipe=recipe,
            preset=preset or "auto",
            set_flags=set_flags_of(set_flags),
            shards=None if shards is None else str(shards),
            classes=None if classes is None else str(classes),
            time_budget=None if time_budget is None else parse_time_budget(time_budget),
        )
        result = quantize(
            plan,
            out,
            work=stages,
            val=val,
            overwrite=overwrite,
            dry_run=dry_run,
            quiet=quiet,
        )
        if result:
            # The first line of each says how large the file is; the benchmark's says it beside float.
            for line in (*export_lines(result["export"])[1:], *summary_lines(result["benchmark"])):
                print_result(line)
            if as_json:
                print_json(result)

    run_guarded(run, debug=debug, quiet=quiet, resume=lambda: same_command(PROGRAM))
