"""Record of the addresses that this user's sets were fetched from.

It is kept in the cache by the manifest's digest, not in the set, where anyone could write it."""

import json
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from clusterq_common.files import atomic_write
from clusterq_common.progress.console import info
from clusterq_common.settings import Settings
from clusterq_common.shards.index import cache_folder
from clusterq_common.shards.manifest import Digest
from clusterq_common.sharing.signature import manifest_digest

ORIGINS = "origins"
LARGEST_RECORD = 1 << 16


class Origin(Settings):
    """Address that a set was fetched from.

    Attributes:
        address: without credentials; of the Hub with the commit.
        revision: that commit; None for places that have none.
        digest: of the set.
        manifest: of all that its manifest says: this, not the address, says which set it was.
        changed: when the set was put there, as the server says.
        fetched: when it was fetched, UTC.
    """

    address: str
    revision: str | None
    digest: Digest
    manifest: Digest
    changed: str | None
    fetched: str


def now_text() -> str:
    """Return the current time as records store it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def remember_origin(origin: Origin) -> None:
    """Record where a set came from. If the cache cannot be written, only the record is lost."""
    path = _record(origin.manifest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(origin.model_dump(mode="json"), indent=2) + "\n")
    except OSError as error:
        info(f"Note: {path.parent} cannot be written ({error.strerror}), so later commands do not know the set's address.")


def origin_of(folder: Path) -> Origin | None:
    """Return the address from which this user fetched the set in a folder; None if there is no record."""
    path = _record(manifest_digest(folder))
    try:
        if path.stat().st_size > LARGEST_RECORD:
            return None
        return Origin.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError):
        return None  # not there, or not to be read: the address is not known


def _record(digest: str) -> Path:
    return cache_folder() / ORIGINS / f"{digest.removeprefix('sha256:')}.json"
