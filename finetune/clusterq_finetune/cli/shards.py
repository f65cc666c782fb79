"""`clusterq-finetune shards`: look at sets of shards, check them, and make new ones of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clusterq_cli.app import App, Debug, Json, OnDevice, Quiet, Threads
from clusterq_cli.flags import with_flags
from clusterq_cli.help import examples
from clusterq_cli.main import USER_ERROR, run_guarded
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import print_json, print_result
from clusterq_common.shards.manifest import SplitName
from clusterq_finetune.cli.named_set import PLACES, SHARING, Flags, Out, Set, find_set, set_folder, sharing_config
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.layouts import LAYOUTS, LAYOUTS_OR_OWN
from clusterq_report.leakage.config import LeakageConfig
from clusterq_report.quality.config import QualityConfig

app = App(help="Look at sets of shards, check them, merge them, cut them, mend them.", no_args_is_help=True)


@app.command(
    epilog=examples("clusterq-finetune shards info out/", "clusterq-finetune shards info hf://datasets/team/set --trust keys")
)
@with_flags(SHARING, typer.Option)
def info(flags: Flags, folder: Set, as_json: Json = False, debug: Debug = False) -> None:
    """Print a set's own description and who signed it; nothing is verified but its manifest, and of an address nothing else is fetched."""

    def go() -> None:
        from clusterq_finetune.shards_tools import commands
        from clusterq_finetune.shards_tools.about import about

        known = about(folder, sharing_config(flags))
        for line in [*commands.describe(known.manifest), *known.lines()]:
            print_result(line)
        if as_json:
            print_json({**known.manifest.model_dump(mode="json"), "about": known.as_json()})

    run_guarded(go, debug=debug)


@app.command(
    epilog=examples(
        "clusterq-finetune shards verify out/",
        "clusterq-finetune shards verify out/ --arch resnet18 --weights resnet18.pth --json",
        "clusterq-finetune shards verify received/ --trust team-a.pub --require-signed",
    )
)
@with_flags(SHARING, typer.Option)
def verify(
    flags: Flags,
    folder: Set,
    arch: Annotated[str | None, typer.Option("--arch", help="The teacher, to compare labels and logits too.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Its weights.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Samples of each split that the teacher looks at.")] = 256,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check every file and every sample: hashes, members, labels, images, counts, digests; exit code 2 if something is wrong."""

    def go() -> None:
        from clusterq_finetune.shards_tools import commands
        from clusterq_finetune.shards_tools.sharing import signature_problems

        place = find_set(folder, flags)
        manifest, problems = commands.verify(place.folder, arch, weights, samples)
        problems += signature_problems(place.maker, sharing_config(flags))
        print_result(f"maker: {place.maker.description()}")
        for line in commands.table(problems):
            print_result(line)
        if as_json:
            print_json(
                {
                    "digest": manifest.digest,
                    "ok": not problems,
                    "maker": place.maker.facts(),
                    "problems": [vars(one) for one in problems],
                }
            )
        if problems:
            raise SystemExit(USER_ERROR)

    run_guarded(go, debug=debug, quiet=quiet)


@app.command(
    epilog=examples(
        "clusterq-finetune shards quality out/ --out quality.html",
        "clusterq-finetune shards quality out/ --other-arch resnet56_cifar10 --real real/",
    )
)
@with_flags({"quality": QualityConfig, "evaluation": EvaluationConfig, **SHARING}, typer.Option)
def quality(
    flags: dict[str, dict[str, Any]],
    folder: Set,
    arch: Annotated[
        str | None, typer.Option("--arch", help="The teacher.", show_default="as the run folder or the manifest says")
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Its weights.")] = None,
    other_arch: Annotated[
        str | None,
        typer.Option("--other-arch", help="Another classifier of the same images and classes: does it see the labels, too?"),
    ] = None,
    other_weights: Annotated[str | None, typer.Option("--other-weights", help="Its weights.")] = None,
    real: Annotated[
        Path | None, typer.Option("--real", help=f"Real images to compare with, where there are any: {LAYOUTS_OR_OWN}.")
    ] = None,
    real_classes: Annotated[
        Path | None, typer.Option("--real-classes", help="File with one class folder name of --real a line, in index order.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("quality.html"),
    device: OnDevice = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rate a set without real images: labels, certainty, diversity, duplicates, beside pure noise as a reference."""

    def go() -> None:
        from clusterq_finetune.shards_tools.quality import Where
        from clusterq_finetune.shards_tools.quality import quality as measure
        from clusterq_report.quality.score import score
        from clusterq_report.quality.summary import summary_lines

        runtime = RuntimeConfig.validated({"device": device, "threads": threads})
        config = QualityConfig.validated(flags.get("quality", {}))
        reading = EvaluationConfig.validated(flags.get("evaluation", {}))
        where = Where(arch, weights, other_arch, other_weights, real, real_classes, reading)
        found = measure(set_folder(folder, flags), where, config, runtime, out)
        for line in summary_lines(found):
            print_result(line)
        print_result(f"page: {out}")
        if as_json:
            print_json({**found.model_dump(mode="json"), "score": score(found)})

    run_guarded(go, debug=debug, quiet=quiet)


@app.command(
    epilog=examples(
        "clusterq-finetune shards leakage out/ --train private/train/ --holdout private/test/",
        "clusterq-finetune shards leakage out/ --train train/ --holdout test/ --student out/finetune-w4a4/",
    )
)
@with_flags({"leakage": LeakageConfig, "evaluation": EvaluationConfig, **SHARING}, typer.Option)
def leakage(
    flags: Flags,
    folder: Set,
    train: Annotated[
        Path, typer.Option("--train", help=f"The images that the teacher was trained on: {LAYOUTS}.", show_default=False)
    ],
    holdout: Annotated[
        Path,
        typer.Option("--holdout", help="Images of the same source that the teacher never saw, likewise.", show_default=False),
    ],
    real_classes: Annotated[
        Path | None,
        typer.Option("--real-classes", help="File with one class folder name of both a line, in index order."),
    ] = None,
    arch: Annotated[
        str | None, typer.Option("--arch", help="The teacher.", show_default="as the run folder or the manifest says")
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Its weights.")] = None,
    other_arch: Annotated[
        str | None,
        typer.Option(
            "--other-arch",
            help="Another classifier of the same images and classes, to compare by its features too; best one that never saw the "
            "training images.",
        ),
    ] = None,
    other_weights: Annotated[str | None, typer.Option("--other-weights", help="Its weights.")] = None,
    student: Annotated[
        Path | None, typer.Option("--student", help="Folder of a student, to attack it beside the teacher.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page; the figures go beside it as JSON. Both are private.")] = Path(
        "leakage.html"
    ),
    device: OnDevice = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure what a set gives away of the training images, for those who have them: copies, nearness, class means, membership."""

    def go() -> None:
        from clusterq_finetune.shards_tools.leakage import Where
        from clusterq_finetune.shards_tools.leakage import leakage as measure
        from clusterq_report.leakage.summary import summary_lines

        runtime = RuntimeConfig.validated({"device": device, "threads": threads})
        config = LeakageConfig.validated(flags.get("leakage", {}))
        reading = EvaluationConfig.validated(flags.get("evaluation", {}))
        where = Where(train, holdout, real_classes, arch, weights, other_arch, other_weights, student, reading)
        found = measure(set_folder(folder, flags), where, config, runtime, out)
        for line in summary_lines(found):
            print_result(line)
        print_result(f"page: {out} (private: it holds real images)")
        if as_json:
            print_json(found.model_dump(mode="json"))

    run_guarded(go, debug=debug, quiet=quiet)


@app.command(
    epilog=examples(
        "clusterq-finetune shards preview out/ --out digits.png",
        "clusterq-finetune shards preview out/ --classes 0,3,10-19 --per-class 20",
    )
)
@with_flags(SHARING, typer.Option)
def preview(
    flags: Flags,
    folder: Set,
    out: Annotated[Path, typer.Option("--out", help="The picture.")] = Path("preview.png"),
    split: Annotated[SplitName, typer.Option("--split", metavar="<name>", help="train or heldout.")] = "train",
    classes: Annotated[str | None, typer.Option("--classes", help="E.g. 0,3,10-19; the first fifty if left out.")] = None,
    per_class: Annotated[int, typer.Option("--per-class", min=1, help="Images in a row.")] = 10,
    debug: Debug = False,
) -> None:
    """Draw a contact sheet, one row a class."""

    def go() -> None:
        from clusterq_finetune.shards_tools import commands

        count = commands.preview(set_folder(folder, flags), out, split, parse_classes(classes), per_class)
        print_result(f"{count} images: {out}")

    run_guarded(go, debug=debug)


@app.command(epilog=examples("clusterq-finetune shards merge ours/ theirs/ --out both/"))
@with_flags(SHARING, typer.Option)
def merge(
    flags: Flags,
    folders: Annotated[
        list[str], typer.Argument(help=f"Two or more sets of one teacher: folders or addresses ({PLACES}).", show_default=False)
    ],
    out: Out,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Keep the first of equal images instead of refusing.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Merge several sets into one."""

    def go() -> None:
        from clusterq_finetune.shards_tools import commands

        _report(commands.merge([set_folder(one, flags) for one in folders], out, drop_duplicates=drop_duplicates), out)

    run_guarded(go, debug=debug, quiet=quiet)


@app.command(
    epilog=examples(
        "clusterq-finetune shards subset out/ --per-class 50 --out small/",
        "clusterq-finetune shards subset out/ --min-confidence 0.9 --out sure/",
    )
)
@with_flags(SHARING, typer.Option)
def subset(
    flags: Flags,
    folder: Set,
    out: Out,
    classes: Annotated[str | None, typer.Option("--classes", help="E.g. 0,3,10-19; all if left out.")] = None,
    per_class: Annotated[int | None, typer.Option("--per-class", min=1, help="Training images of a class, at most.")] = None,
    min_confidence: Annotated[
        float, typer.Option("--min-confidence", min=0, max=1, help="The teacher's least confidence in its top-1.")
    ] = 0.0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a part of a set as a new set."""

    def go() -> None:
        from clusterq_finetune.shards_tools import commands

        chosen = parse_classes(classes)
        _report(
            commands.subset(set_folder(folder, flags), out, classes=chosen, per_class=per_class, min_confidence=min_confidence),
            out,
        )

    run_guarded(go, debug=debug, quiet=quiet)


@app.command(epilog=examples("clusterq-finetune shards repair damaged/ --out mended/"))
@with_flags(SHARING, typer.Option)
def repair(flags: Flags, folder: Set, out: Out, quiet: Quiet = False, debug: Debug = False) -> None:
    """Save what can be read of a damaged set into a new one. (Its maker can make damaged shards again: clusterq-gen emit.)"""

    def go() -> None:
        from clusterq_finetune.shards_tools import commands

        _report(commands.repair(set_folder(folder, flags), out), out)

    run_guarded(go, debug=debug, quiet=quiet)


def parse_classes(text: str | None) -> list[int] | None:
    """`0,3,10-12` as [0, 3, 10, 11, 12].

    Raises:
        ClusterqError: something else.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ClusterqError(f"--classes: found {text!r}, expected class numbers such as 0,3,10-19; correct it.")
        found += range(int(first), int(last or first) + 1)
    return sorted(set(found))


def _report(manifest: Any, out: Path) -> None:
    counts = ", ".join(f"{name}: {split.samples}" for name, split in manifest.splits.items())
    print_result(f"{out}: {counts}, {manifest.digest}")
