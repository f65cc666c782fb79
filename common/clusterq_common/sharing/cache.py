"""Cache of fetched sets: one folder each, named by the digest of its manifest."""

from contextlib import AbstractContextManager
from pathlib import Path

from clusterq_common.run.folder_lock import after_other_programs
from clusterq_common.shards.index import cache_folder

SETS = "sets"


def cached_set(digest: str) -> Path:
    """Return the folder of the set whose manifest has this digest."""
    return cache_folder() / SETS / digest.removeprefix("sha256:")


def one_at_a_time(folder: Path) -> AbstractContextManager[None]:
    """Let one program at a time fetch into a folder of the cache. Others wait, and then find the set there."""
    return after_other_programs(folder, f"Another program is fetching the same set into {folder}; waiting for it.")
