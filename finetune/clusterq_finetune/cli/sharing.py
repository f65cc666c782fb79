"""`clusterq-finetune shards`: send and fetch sets, sign them, compare them, and say how they came to be."""

from pathlib import Path
from typing import Annotated

import typer

from clusterq_cli.app import Debug, Json, Quiet
from clusterq_cli.flags import with_flags
from clusterq_cli.help import examples
from clusterq_cli.main import run_guarded
from clusterq_common.progress.console import print_json, print_result
from clusterq_finetune.cli.named_set import SHARING, Flags, Set, set_folder, sharing_config
from clusterq_finetune.cli.shards import app as app  # with these commands added

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there, though it is another's.")]


@app.command(
    epilog=examples(
        "clusterq-finetune shards push out/ hf://datasets/team/digits",
        "clusterq-finetune shards push out/ s3://bucket/digits",
    )
)
@with_flags(SHARING, typer.Option)
def push(
    flags: Flags,
    folder: Set,
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="hf://datasets/TEAM/NAME, s3:// or gs://", show_default=False)
    ],
    public: Annotated[
        bool, typer.Option("--public", help="A new dataset of the Hub is public; without this it is private.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Send a set to an address, its manifest last; of a set that has grown only what is new."""

    def go() -> None:
        from clusterq_finetune.shards_tools import sharing

        sent = sharing.send(set_folder(folder, flags), address, sharing_config(flags), public=public, overwrite=overwrite)
        removed = f", {len(sent.removed)} removed" if sent.removed else ""
        print_result(f"{sent.address}: {len(sent.sent)} shards sent, {sent.kept} there already{removed}, {sent.digest}")
        if as_json:
            print_json(vars(sent))

    run_guarded(go, debug=debug, quiet=quiet)


@app.command(
    epilog=examples(
        "clusterq-finetune shards pull hf://datasets/team/digits --out digits/",
        "clusterq-finetune shards pull s3://bucket/set --trust team.pub --require-signed",
    )
)
@with_flags(SHARING, typer.Option)
def pull(
    flags: Flags,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="hf://, s3://, gs:// or https://", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A new folder, or one with an earlier state of the set.", show_default="clusterq's cache"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch a set from an address: what is missing of it, every file verified. Run it again after an interruption to go on."""

    def go() -> None:
        from clusterq_finetune.shards_tools import sharing

        found = sharing.fetch(address, out, sharing_config(flags))
        print_result(f"{found['folder']}: {found['address']}, {found['digest']}")
        if as_json:
            print_json(found)

    run_guarded(go, debug=debug, quiet=quiet)


@app.command(epilog=examples('clusterq-finetune shards keygen --out team-a --name "Team A"'))
def keygen(
    out: Annotated[
        Path, typer.Option("--out", help="The private key; the public one gets .pub at its end.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Who you are, for the public key's line.", show_default="as --out")
    ] = None,
    debug: Debug = False,
) -> None:
    """Make a key to sign sets with (Ed25519, in OpenSSH's form). Give the .pub file to those who get your sets."""

    def go() -> None:
        from clusterq_common.sharing.keys import fingerprint, generate

        key = generate(out, name or out.name)
        print_result(f"private key: {out} (keep it to yourself)")
        print_result(f"public key:  {out}.pub, {fingerprint(key)}")

    run_guarded(go, debug=debug)


@app.command(epilog=examples("clusterq-finetune shards sign out/ --key team-a"))
def sign(
    folder: Annotated[
        Path, typer.Argument(metavar="SET", help="A folder of shards, or a run folder of clusterq-gen.", show_default=False)
    ],
    key: Annotated[Path, typer.Option("--key", help="Your private key, from `shards keygen` or `ssh-keygen`.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Sign a set, once its files have been verified: a file beside the manifest, which programs without signatures ignore."""

    def go() -> None:
        from clusterq_finetune.shards_tools import sharing

        made = sharing.sign_set(folder, key, overwrite=overwrite)
        print_result(f"{folder}: signed with {made.fingerprint}, {made.manifest}")
        if as_json:
            print_json({"key": made.fingerprint, "signed_at": made.signed_at, "set": made.set, "manifest": made.manifest})

    run_guarded(go, debug=debug)


@app.command(
    epilog=examples("clusterq-finetune shards diff before/ after/", "clusterq-finetune shards diff s3://bucket/set out/")
)
@with_flags(SHARING, typer.Option)
def diff(
    flags: Flags,
    first: Set,
    second: Set,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare two sets: teacher, settings, counts, and images, by their labels and pixels."""

    def go() -> None:
        from clusterq_finetune.shards_tools import sharing

        found = sharing.compare(set_folder(first, flags), set_folder(second, flags))
        for line in sharing.diff_lines(found):
            print_result(line)
        if as_json:
            print_json(found.as_json())

    run_guarded(go, debug=debug, quiet=quiet)


@app.command(epilog=examples("clusterq-finetune shards log both/"))
@with_flags(SHARING, typer.Option)
def log(flags: Flags, folder: Set, as_json: Json = False, debug: Debug = False) -> None:
    """Print how a set came to be: emitted, extended, merged, cut, mended; of an address only the small files are fetched."""

    def go() -> None:
        from clusterq_common.shards import history
        from clusterq_finetune.shards_tools.about import about

        manifest = about(folder, sharing_config(flags)).manifest
        for line in history.lines(manifest):
            print_result(line)
        if as_json:
            print_json(history.as_json(manifest))

    run_guarded(go, debug=debug)
