"""Sets at addresses of this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterq_common.sharing import remote
from clusterq_common.sharing.keys import generate
from tests.common.shard_samples import write_set
from tests.common.sharing.servers import Behaviour, serving


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no waiting before new tries."""
    monkeypatch.setenv("CLUSTERQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder that is served, with a set of three shards in `set`."""
    write_set(tmp_path / "site" / "set")
    return tmp_path / "site"


@pytest.fixture
def server(site: Path) -> Iterator[tuple[str, Behaviour]]:
    """The address of the set, and what the server does."""
    with serving(site) as (address, behaviour):
        yield f"{address}/set", behaviour


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    """Two makers' keys, and the files of those that are trusted."""
    (tmp_path / "keys").mkdir()
    for name in ("a", "b"):
        generate(tmp_path / "keys" / name, f"team {name.upper()}")
    return {name: tmp_path / "keys" / name for name in ("a", "b")}
