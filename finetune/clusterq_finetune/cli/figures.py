"""`clusterq-finetune figures`: the command line of the papers' figures. Torch and matplotlib are imported once a command runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clusterq_cli.app import App, Debug, Json, OnDevice, Quiet, Threads
from clusterq_cli.flags import with_flags
from clusterq_cli.help import examples
from clusterq_cli.main import run_guarded
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.progress.console import print_json, print_result
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune.cli.named_set import PLACES, SHARING, set_folder
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.layouts import LAYOUTS_OR_OWN
from clusterq_finetune.figures.config import (
    DiversityConfig,
    FeaturesConfig,
    FileConfig,
    GridConfig,
    ImagesConfig,
)

app = App(help="Draw the papers' figures of any run: features, diversity, images, sensitivity.", no_args_is_help=True)

Runs = Annotated[
    list[str],
    typer.Argument(
        help=f"Run folders of clusterq-gen, folders of shards, or addresses of sets ({PLACES}), of one teacher.",
        show_default=False,
    ),
]
ValOption = Annotated[Path | None, typer.Option("--val", help=f"Real images to show beside them: {LAYOUTS_OR_OWN}.")]
ValClasses = Annotated[
    Path | None, typer.Option("--val-classes", help="File with one class folder name of --val a line, in index order.")
]
OUT_HELP = "File to write: a path without ending for one file of each --format, or a file with one."

TEACHER: dict[str, Any] = {"teacher": TeacherConfig}
SHARED: dict[str, Any] = {"evaluation": EvaluationConfig, "file": FileConfig, **SHARING}
NOTES = {"file": {"format": "png,svg"}}


@app.command(epilog=examples("clusterq-finetune figures features out/ --val real/ --projection pca"))
@with_flags({**TEACHER, "figure": FeaturesConfig, "images": ImagesConfig, **SHARED}, typer.Option, NOTES)
def features(
    flags: dict[str, dict[str, Any]],
    runs: Runs,
    val: ValOption = None,
    val_classes: ValClasses = None,
    out: Annotated[Path, typer.Option("--out", help=OUT_HELP)] = Path("features"),
    device: OnDevice = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Deep features of generated and real images on a plane (ClusterQ, Fig. 1 and 3)."""

    def run() -> None:
        from clusterq_finetune.figures import command

        runtime = RuntimeConfig.validated({"device": device, "threads": threads})
        _print(
            command.features(flags, [set_folder(name, flags) for name in runs], command.Val(val, val_classes), out, runtime),
            as_json=as_json,
        )

    run_guarded(run, debug=debug, quiet=quiet)


@app.command(epilog=examples('clusterq-finetune figures diversity out/ out-2/ --names "with DE,without DE"'))
@with_flags({**TEACHER, "figure": DiversityConfig, "images": ImagesConfig, **SHARED}, typer.Option, NOTES)
def diversity(
    flags: dict[str, dict[str, Any]],
    runs: Runs,
    val: ValOption = None,
    val_classes: ValClasses = None,
    out: Annotated[Path, typer.Option("--out", help=OUT_HELP)] = Path("diversity"),
    device: OnDevice = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Differences within classes, run beside run: with and without diversity enhancement, say (ClusterQ, Fig. 5 and 7)."""

    def run() -> None:
        from clusterq_finetune.figures import command

        runtime = RuntimeConfig.validated({"device": device, "threads": threads})
        _print(
            command.diversity(flags, [set_folder(name, flags) for name in runs], command.Val(val, val_classes), out, runtime),
            as_json=as_json,
        )

    run_guarded(run, debug=debug, quiet=quiet)


@app.command(epilog=examples("clusterq-finetune figures grid clusterq/ gdfq/ --val real/ --per-class 2"))
@with_flags({"figure": GridConfig, **SHARED}, typer.Option, NOTES)
def grid(
    flags: dict[str, dict[str, Any]],
    runs: Runs,
    val: ValOption = None,
    val_classes: ValClasses = None,
    out: Annotated[Path, typer.Option("--out", help=OUT_HELP)] = Path("grid"),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Images of the same classes, a row for each run (ClusterQ, Fig. 6)."""

    def run() -> None:
        from clusterq_finetune.figures import command

        _print(
            command.grid(flags, [set_folder(name, flags) for name in runs], command.Val(val, val_classes), out), as_json=as_json
        )

    run_guarded(run, debug=debug, quiet=quiet)


@app.command(epilog=examples("clusterq-finetune figures sensitivity analyses/ema-rate analyses/diversity"))
@with_flags({"file": FileConfig}, typer.Option, NOTES)
def sensitivity(
    flags: dict[str, dict[str, Any]],
    tables: Annotated[
        list[Path],
        typer.Argument(help="Folders of tools/analyses.py, one analysis each, or their table.json.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help=OUT_HELP)] = Path("sensitivity"),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Accuracy against a setting that an analysis has varied (ClusterQ, Fig. 8 and 9)."""

    def run() -> None:
        from clusterq_finetune.figures import command

        _print(command.sensitivity(flags, tables, out), as_json=as_json)

    run_guarded(run, debug=debug, quiet=quiet)


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    print_result(result["caption"])
    for path in result["files"].values():
        print_result(path)
    if as_json:
        print_json(result)
