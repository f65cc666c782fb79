"""Sets in buckets, on a real server of S3's interface that runs here."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.verify import verify_set
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.objects import ObjectRemote
from clusterq_common.sharing.offer import look
from clusterq_common.sharing.place import locate
from clusterq_common.sharing.pull import pull
from clusterq_common.sharing.push import push
from clusterq_common.sharing.remote import CutOffError
from tests.common.shard_samples import write_set

ADDRESS = "s3://sets/team/digits"
PLAIN = SharingConfig()


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """A server with an empty bucket."""
    pytest.importorskip("s3fs", reason="buckets need the extra `remote`")
    moto_server = pytest.importorskip("moto.server", reason="the server of buckets is the extra `test-remote`")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(service: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client's environment, and an empty bucket as its driver sees it."""
    for name, value in {
        "AWS_ENDPOINT_URL": service,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import fsspec

    files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    if files.exists("sets"):
        files.rm("sets", recursive=True)
    files.mkdir("sets")
    return files


def names(bucket: Any) -> list[str]:
    return sorted(path.rpartition("/")[2] for path in bucket.find("sets"))


def before_each_put(bucket: Any, patch: pytest.MonkeyPatch, act: Callable[[str], None]) -> None:
    """Do something before the driver sends a file; the driver's objects are made once and kept, so those go."""
    kind = type(bucket)
    real = kind._put_file

    async def put(self: Any, local: str, *rest: Any, **more: Any) -> Any:
        act(local)
        return await real(self, local, *rest, **more)

    patch.setattr(kind, "_put_file", put)
    kind.clear_instance_cache()


def test_there_and_back(bucket: Any, tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    sent = push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    assert (len(sent.sent), sent.kept, sent.removed) == (3, 0, [])
    assert names(bucket) == sorted(path.name for path in (tmp_path / "set").iterdir())
    offer = look(ADDRESS, PLAIN)
    assert offer.changed is not None
    folder = pull(offer, PLAIN, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()}
    assert locate(ADDRESS, PLAIN).address == ADDRESS
    kept = "".join(path.read_text(errors="replace") for path in (tmp_path / "cache").rglob("*.json"))
    assert "very-secret" not in kept
    assert "AKIAEXAMPLE" not in kept


def test_a_set_that_has_grown_sends_only_what_is_new_and_its_manifest_last(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "set", 10)
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    write_set(tmp_path / "grown", 15)
    order: list[str] = []
    before_each_put(bucket, monkeypatch, lambda local: order.append(os.path.basename(local)))
    sent = push(ShardSet.open(tmp_path / "grown"), ADDRESS, PLAIN)
    assert (sent.sent, sent.kept) == (["synth-train-000002.tar"], 2)
    assert order[0] == "synth-train-000002.tar"
    assert order[-1] == "manifest.json"
    assert len([name for name in order if name.endswith(".tar")]) == 1
    folder = locate(ADDRESS, PLAIN).folder
    assert verify_set(folder, read_manifest(folder)) == []


def test_another_set_is_replaced_only_when_asked(bucket: Any, tmp_path: Path) -> None:
    write_set(tmp_path / "set", 12)
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    write_set(tmp_path / "other", 5, seed=9)
    other = ShardSet.open(tmp_path / "other")
    with pytest.raises(ClusterqError, match=r"holds another set .* pass overwrite to replace it\."):
        push(other, ADDRESS, PLAIN)
    assert look(ADDRESS, PLAIN).manifest == read_manifest(tmp_path / "set")
    sent = push(other, ADDRESS, PLAIN, overwrite=True)
    assert sent.removed == ["synth-train-000001.tar", "synth-train-000002.tar"]
    assert [name for name in names(bucket) if name.endswith(".tar")] == ["synth-train-000000.tar"]
    folder = locate(ADDRESS, PLAIN).folder
    assert ShardSet.open(folder).manifest == other.manifest


def test_an_interrupted_push_leaves_no_set(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "set")

    def fail(local: str) -> None:
        if local.endswith("000001.tar"):
            raise ConnectionResetError("at s3://secret-address?key=1")

    with monkeypatch.context() as patch:
        before_each_put(bucket, patch, fail)
        with pytest.raises(
            CutOffError, match=r"synth-train-000001\.tar could not be reached \(ConnectionResetError\)"
        ) as failed:
            push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    assert "key=1" not in str(failed.value)
    assert "manifest.json" not in names(bucket)
    with pytest.raises(ClusterqError, match=r"there is no manifest\.json"):
        look(ADDRESS, PLAIN)
    type(bucket).clear_instance_cache()
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    assert locate(ADDRESS, PLAIN).digest == read_manifest(tmp_path / "set").digest


def test_parts_of_a_file(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clusterq_common.sharing import objects
    from clusterq_common.sharing.address import parse_address

    monkeypatch.setattr(objects, "PART", 1000)
    write_set(tmp_path / "set")
    push(ShardSet.open(tmp_path / "set"), ADDRESS, PLAIN)
    data = (tmp_path / "set" / "synth-train-000000.tar").read_bytes()
    remote = ObjectRemote(parse_address(ADDRESS))
    for start in (0, 1, 999, 1000, len(data) - 1, len(data)):
        with remote.open("synth-train-000000.tar", start) as stream:
            assert (stream.start, stream.size) == (start, len(data))
            assert b"".join(stream.chunks) == data[start:]


def test_a_bucket_that_is_not_there(bucket: Any) -> None:
    with pytest.raises(ClusterqError, match=r"s3://nowhere-at-all/set: there is no manifest\.json"):
        look("s3://nowhere-at-all/set", PLAIN)


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        ClusterqError, match=r"s3://sets/team/digits: the package s3fs is not installed.*pip install '\.\[remote\]'"
    ):
        look(ADDRESS, PLAIN)
