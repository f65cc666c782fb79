"""Parameters of commands on sets: a set by its folder or its address, and the rules for sets from elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clusterq_common.sharing.config import SharingConfig

if TYPE_CHECKING:
    from clusterq_common.sharing.place import Place

SHARING = {"sharing": SharingConfig}
PLACES = "hf://datasets/TEAM/NAME[@revision], s3://, gs:// or https://"

Set = Annotated[
    str,
    typer.Argument(
        metavar="SET", help=f"A folder of shards, a run folder of clusterq-gen, or an address: {PLACES}", show_default=False
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder of the new set; new or empty.", show_default=False)]

Flags = dict[str, dict[str, Any]]


def sharing_config(flags: Flags) -> SharingConfig:
    """The values of the options that `SHARING` gives a command."""
    return SharingConfig.validated(flags.get("sharing", {}))


def find_set(named: str, flags: Flags) -> "Place":
    """Bring a set here, if it lies at an address, and say who made it.

    Raises:
        ClusterqError: there is no usable set, or the rules refuse it.
    """
    from clusterq_common.sharing.place import locate

    return locate(named, sharing_config(flags))


def set_folder(named: str, flags: Flags) -> Path:
    """Return a set's folder, fetched if needed, and report its maker.

    Raises:
        ClusterqError: see `find_set`.
    """
    return find_set(named, flags).folder
