"""Record of an emission's finished shards, kept beside them until the manifest is written."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clusterq_common.documents import read_json
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write, make_folder, sha256_file
from clusterq_common.shards.manifest import Shard
from clusterq_common.shards.write import Written
from clusterq_gen.emission.candidates import EmissionCounts
from clusterq_gen.emission.shard_plan import ShardPlan

JOURNAL = ".emission"


def scratch(folder: Path) -> Path:
    """Folder of files that an emission into `folder` needs until its manifest is written. `Journal.close` removes it."""
    return folder / JOURNAL / "scratch"


class Journal:
    """A note for each finished shard: what it was made of, its hash, and what was counted on the way.

    Args:
        folder: the folder of shards.
        identity: everything that a shard's bytes depend on, apart from its plan.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._identity = identity

    def finished(self, plan: ShardPlan) -> tuple[Written, EmissionCounts] | None:
        """Return an interrupted emission's record of this shard, if the file is there, whole and of the same making."""
        note = self._note(plan)
        if not note.is_file():
            return None
        try:
            values = read_json(note, what="the note of a finished shard")
            if values["made_of"] != self._made_of(plan):
                return None
            shards = [Shard.model_validate(shard) for shard in values["written"].pop("shards")]
            written, tally = Written(shards=shards, **values["written"]), EmissionCounts(**values["tally"])
        except (ClusterqError, ValueError, KeyError, TypeError):
            return None  # not one of ours: the shard is made again
        whole = all(self._verifies(shard) for shard in shards)
        return (written, tally) if whole else None

    def note(self, plan: ShardPlan, written: Written, tally: EmissionCounts) -> None:
        """Record a finished shard."""
        shards = [shard.model_dump() for shard in written.shards]
        values = {"made_of": self._made_of(plan), "written": {**asdict(written), "shards": shards}, "tally": asdict(tally)}
        path = self._note(plan)
        make_folder(path.parent)
        atomic_write(path, json.dumps(values))

    def close(self) -> None:
        """Delete the journal."""
        shutil.rmtree(self.folder / JOURNAL, ignore_errors=True)

    def _verifies(self, shard: Shard) -> bool:
        path = self.folder / shard.file
        return path.is_file() and path.stat().st_size == shard.bytes and sha256_file(path) == shard.sha256

    def _note(self, plan: ShardPlan) -> Path:
        return self.folder / JOURNAL / f"{plan.name}.json"

    def _made_of(self, plan: ShardPlan) -> str:
        # The key is older than the name `plan`: another one would not recognise the shards of an interrupted emission.
        text = json.dumps({**self._identity, "block": asdict(plan)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
