"""Datasets of the Hub: its own client against a stand-in of its server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.keys import generate, load_private
from clusterq_common.sharing.offer import look
from clusterq_common.sharing.origin import origin_of
from clusterq_common.sharing.place import locate, pinned
from clusterq_common.sharing.pull import pull
from clusterq_common.sharing.push import push
from clusterq_common.sharing.signature import manifest_digest, sign, write_signature
from tests.common.shard_samples import write_set
from tests.common.sharing.hub_server import Hub, hub

pytestmark = pytest.mark.filterwarnings("ignore:Use .content:DeprecationWarning")  # of the client itself
ADDRESS = "hf://datasets/team/digits"
PLAIN = SharingConfig()


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub, as this user's environment names it."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="datasets of the Hub need the extra `hub`")
    # The Hub's newer transfer asks servers of its own.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub() as (address, state):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", state.token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        yield state


def test_there_and_back_with_the_commit_as_its_name(there: Hub, tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    assert there.private == {"team/digits": True}, "private unless it is asked to be public"
    assert len(there.commits["team/digits"]) == 1, "one commit: nobody sees half a set"
    commit, files = there.commits["team/digits"][0]
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    place = locate(ADDRESS, PLAIN)
    assert place.address == f"{ADDRESS}@{commit}"
    assert ShardSet.open(place.folder).manifest == read_manifest(tmp_path / "set")
    told = pinned(place)
    assert (told["address"], told["revision"]) == (f"{ADDRESS}@{commit}", commit)
    origin = origin_of(place.folder)
    assert origin is not None
    assert origin.changed == "2026-01-02T03:04:05+00:00"
    kept = "".join(path.read_text(errors="replace") for path in (tmp_path / "cache").rglob("*.json"))
    assert there.token not in kept


def test_a_set_that_has_grown_and_its_earlier_commit(there: Hub, tmp_path: Path) -> None:
    write_set(tmp_path / "set", 10)
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    write_set(tmp_path / "grown", 15)
    there.uploads.clear()
    sent = push(ShardSet.open(tmp_path / "grown"), ADDRESS, PLAIN)
    assert (sent.sent, sent.kept) == (["synth-train-000002.tar"], 2)
    assert there.uploads == [(tmp_path / "grown" / "synth-train-000002.tar").stat().st_size]
    first, second = (commit for commit, _ in there.commits["team/digits"])
    assert look(f"{ADDRESS}@{first}", PLAIN).manifest == read_manifest(tmp_path / "set")
    offer = look(ADDRESS, PLAIN)
    assert (offer.remote.revision, offer.manifest) == (second, read_manifest(tmp_path / "grown"))
    with pytest.raises(ClusterqError, match="no such dataset or revision"):
        look(f"{ADDRESS}@v9", PLAIN)


def test_a_signature_under_the_earlier_state_does_not_stay_behind(there: Hub, tmp_path: Path) -> None:
    generate(tmp_path / "key", "team")
    write_set(tmp_path / "set", 10)
    made = sign(read_manifest(tmp_path / "set"), manifest_digest(tmp_path / "set"), load_private(tmp_path / "key"))
    write_signature(tmp_path / "set", made)
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    assert look(ADDRESS, PLAIN).maker.signature is not None
    write_set(tmp_path / "grown", 15)
    sent = push(ShardSet.open(tmp_path / "grown"), ADDRESS, PLAIN)
    assert sent.removed == [], "no shard went"
    assert look(ADDRESS, PLAIN).maker.signature is None


def test_another_set_is_replaced_only_when_asked(there: Hub, tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN, public=True)
    assert there.private == {"team/digits": False}
    write_set(tmp_path / "other", 5, seed=9)
    with pytest.raises(ClusterqError, match=r"holds another set .* pass overwrite to replace it\."):
        push(ShardSet.open(tmp_path / "other"), ADDRESS, PLAIN)
    push(ShardSet.open(tmp_path / "other"), ADDRESS, PLAIN, overwrite=True)
    assert [name for name in there.commits["team/digits"][-1][1] if name.endswith(".tar")] == ["synth-train-000000.tar"]
    assert ShardSet.open(pull(look(ADDRESS, PLAIN), PLAIN, tmp_path / "out")).manifest == read_manifest(tmp_path / "other")


def test_nobodys_commit_is_overwritten(there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clusterq_common.sharing import push as module

    write_set(tmp_path / "set", 10)
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    write_set(tmp_path / "grown", 15)
    real = module.read_small

    def meanwhile(*args: object) -> bytes:
        revision = real(*args)
        there.commits["team/digits"].append(("f" * 40, {}))
        return revision

    monkeypatch.setattr(module, "read_small", meanwhile)
    with pytest.raises(ClusterqError, match=r"the Hub refuses \(412\)"):
        push(ShardSet.open(tmp_path / "grown"), ADDRESS, PLAIN)
    assert there.commits["team/digits"][-1][1] == {}


def test_without_a_token(there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "set")
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ClusterqError, match=r"shows you no such dataset.*HF_TOKEN"):
        look(ADDRESS, PLAIN)
    with pytest.raises(ClusterqError, match=r"refuses \(401\).*HF_TOKEN"):
        push(ShardSet.open(tmp_path / "set"), "hf://datasets/team/other", PLAIN)


def test_a_hub_that_is_not_there_or_not_encrypted(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ClusterqError, match=r"the Hub, or its client, failed \(ConnectError\)"):
        look(ADDRESS, PLAIN)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    with pytest.raises(ClusterqError, match=r"HF_ENDPOINT: http://hub\.example\.org is another machine"):
        look(ADDRESS, PLAIN)


def test_a_commit_that_is_none_is_refused(there: Hub, tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    there.commits["team/digits"].append(("../../elsewhere", {}))
    with pytest.raises(ClusterqError, match="names no commit"):
        look(ADDRESS, PLAIN)
