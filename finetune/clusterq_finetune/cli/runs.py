"""`clusterq-finetune reproduce` and `compare`: the commands on finished runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clusterq_cli.app import App, Arch, Debug, Json, Quiet, Weights
from clusterq_cli.flags import with_flags
from clusterq_cli.help import examples
from clusterq_cli.main import run_guarded
from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import print_json, print_result
from clusterq_common.teacher.spec import named_teacher
from clusterq_finetune.cli.named_set import SHARING, sharing_config

app = App()


@app.command(
    epilog=examples(
        "clusterq-finetune reproduce out/finetune-w4a4/result.json --out again/",
        "clusterq-finetune reproduce result.json --shards theirs/ --out again/",
    )
)
@with_flags(SHARING, typer.Option)
def reproduce(
    flags: dict[str, dict[str, Any]],
    result: Annotated[Path, typer.Argument(help="result.json of a fine-tuning, or its folder.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new run.")] = Path("reproduced"),
    shards: Annotated[
        str | None,
        typer.Option("--shards", help="Folder or address of the shards.", show_default="where they were then"),
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

        report = reproduce(
            result, out, shards, teacher=named_teacher(arch, weights), report=page, sharing=sharing_config(flags)
        )
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
    """Make a table of several fine-tunings; runs that differ in the seed alone share a row: mean and spread."""

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
