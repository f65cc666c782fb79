"""Sets from web servers of every kind: good, slow, broken and false."""

import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.verify import verify_set
from clusterq_common.sharing import pull as pull_module
from clusterq_common.sharing.cache import cached_set
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.fetch import fetch_shard, partial_name
from clusterq_common.sharing.http import HttpRemote
from clusterq_common.sharing.offer import look
from clusterq_common.sharing.origin import origin_of
from clusterq_common.sharing.place import also_here, locate
from clusterq_common.sharing.pull import pull
from clusterq_common.sharing.remote import CutOffError
from tests.common.shard_samples import edit_manifest, write_set
from tests.common.sharing.servers import Behaviour, serving

PLAIN = SharingConfig()
ONE = SharingConfig(parallel=1)
FIRST, SECOND, THIRD = (f"synth-train-00000{number}.tar" for number in range(3))
Server = tuple[str, Behaviour]


def fetched(address: str, out: Path | None = None, config: SharingConfig = ONE) -> Path:
    return pull(look(address, config), config, out)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_set_arrives_byte_for_byte_and_its_origin_is_known(server: Server, site: Path, tmp_path: Path) -> None:
    address, told = server
    folder = fetched(address, tmp_path / "out", PLAIN)
    assert files(folder) == files(site / "set")
    origin = origin_of(folder)
    assert origin is not None
    assert (origin.address, origin.digest) == (address, read_manifest(folder).digest)
    assert told.asked[0][0] == "/set/manifest.json", "the description comes first"
    assert sorted(told.shards_asked()) == [FIRST, SECOND, THIRD]


def test_the_cache_is_used_again_and_damage_in_it_is_mended(server: Server) -> None:
    address, told = server
    place = locate(address, PLAIN)
    assert place.folder.parent.name == "sets"
    assert verify_set(place.folder, read_manifest(place.folder)) == []
    told.asked.clear()
    assert locate(address, PLAIN) == place
    assert told.shards_asked() == []
    (place.folder / SECOND).write_bytes(b"damaged")
    locate(address, PLAIN)
    assert told.shards_asked() == [SECOND]
    assert ShardSet.open(place.folder).manifest.digest == place.digest


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_file_that_is_cut_off_is_gone_on_with(server: Server, ranges: bool, tmp_path: Path, site: Path) -> None:
    address, told = server
    told.ranges, told.cut, told.cuts_left = ranges, {FIRST: 3000}, 2
    folder = fetched(address, tmp_path / "out")
    assert files(folder) == files(site / "set")
    asked = [part for path, part, _ in told.asked if path.endswith(FIRST)]
    assert asked == ([None, "bytes=3000-", "bytes=6000-"] if ranges else [None, "bytes=3000-", "bytes=3000-"])


def test_what_arrived_before_an_interruption_is_kept_for_the_next_call(server: Server, tmp_path: Path, site: Path) -> None:
    address, told = server
    told.cut = {SECOND: 1000}
    with pytest.raises(CutOffError, match=rf"{SECOND} was cut off after 4000 of \d+ bytes"):
        fetched(address, tmp_path / "out")
    manifest = read_manifest(site / "set")
    left = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert left[partial_name(manifest.splits["train"].shards[1])] == 4000
    assert "manifest.json" not in left, "without a manifest it is no set"
    told.cut.clear()
    told.asked.clear()
    fetched(address, tmp_path / "out")
    assert files(tmp_path / "out") == files(site / "set")
    assert next((path, part) for path, part, _ in told.asked if ".tar" in path) == (f"/set/{SECOND}", "bytes=4000-")
    assert FIRST not in told.shards_asked()


def test_a_file_without_a_length_ends_where_the_manifest_says(site: Path, tmp_path: Path) -> None:
    shard = read_manifest(site / "set").splits["train"].shards[0]
    endless = _Endless()
    with pytest.raises(ClusterqError, match="goes on behind its"):
        fetch_shard(endless, shard, tmp_path)
    assert endless.sent <= shard.bytes + 4096


class _Endless:
    shown, revision, sent = "https://host/set", None, 0

    def open(self, name: str, start: int = 0):
        from contextlib import nullcontext

        from clusterq_common.sharing.remote import Stream

        def chunks():
            while True:
                self.sent += 4096
                yield b"\0" * 4096

        return nullcontext(Stream(0, None, None, chunks()))


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(server: Server, site: Path, tmp_path: Path) -> None:
    address, told = server
    told.delay = 0.005
    assert files(fetched(address, tmp_path / "out")) == files(site / "set")
    told.delay = 30.0
    begin = time.monotonic()
    with pytest.raises(CutOffError, match=r"no answer in time|timed out"):
        fetch_shard(
            HttpRemote(address, address, patience=0.05), read_manifest(site / "set").splits["train"].shards[0], tmp_path
        )
    assert time.monotonic() - begin < 5


def test_several_files_at_a_time(server: Server, tmp_path: Path) -> None:
    address, told = server
    told.delay = 0.05
    most, now, guard = 0, 0, threading.Lock()
    real = pull_module.fetch_shard

    def counted(*args: object) -> None:
        nonlocal most, now
        with guard:
            now += 1
            most = max(most, now)
        real(*args)
        with guard:
            now -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pull_module, "fetch_shard", counted)
        fetched(address, tmp_path / "out", SharingConfig(parallel=3))
    assert most == 3


def test_a_set_that_has_grown_brings_only_what_is_new(server: Server, site: Path, tmp_path: Path) -> None:
    address, told = server
    for count in (10, 15):
        shutil.rmtree(site / "set")
        write_set(site / "set", count)
        told.asked.clear()
        fetched(address, tmp_path / "out")
    assert told.shards_asked() == [THIRD]
    assert files(tmp_path / "out") == files(site / "set")


@pytest.mark.parametrize(
    "headers",
    [
        {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 +99999999999999999999"},
        {"Last-Modified": "2024\x1b[31m"},
        {"Last-Modified": "Mon, 01 Jan 99999 00:00:00 GMT"},
    ],
)
def test_a_date_that_is_none_is_left_out(server: Server, headers: dict[str, str]) -> None:
    address, told = server
    told.headers = headers
    assert look(address, PLAIN).changed is None


def test_a_length_of_thousands_of_digits_counts_for_nothing() -> None:
    from email.message import Message
    from types import SimpleNamespace

    remote = HttpRemote("https://example.org", "https://example.org")
    headers = Message()
    headers["Content-Length"] = "9" * 5000
    headers["Content-Range"] = f"bytes 0-1/{'9' * 5000}"
    assert remote._extent(SimpleNamespace(status=200, headers=headers), 0) == (0, None)
    with pytest.raises(ClusterqError, match="another part"):
        remote._extent(SimpleNamespace(status=206, headers=headers), 0)


def test_what_arrived_before_a_server_falls_silent_is_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        arrived = bytearray()

        def answer() -> socket.socket:
            connection, _ = listening.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"x" * 5000)
            return connection

        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(answer)
            with HttpRemote(address, address, patience=0.3).open("a.tar") as stream, pytest.raises(CutOffError):
                for chunk in stream.chunks:
                    arrived += chunk
            held.result().close()
    assert arrived == b"x" * 5000


def test_what_is_not_there_and_what_may_come_later(server: Server, site: Path, tmp_path: Path) -> None:
    address, told = server
    with pytest.raises(ClusterqError, match=r"no manifest\.json there \(404\)"):
        look(f"{address}/nowhere", PLAIN)
    told.status = {"manifest.json": 503}
    with pytest.raises(CutOffError, match=r"cannot send manifest\.json now \(503\)"):
        look(address, PLAIN)
    assert len([path for path, _, _ in told.asked if path == "/set/manifest.json"]) == 3
    told.status.clear()
    (site / "set" / SECOND).unlink()
    with pytest.raises(ClusterqError, match=rf"no {SECOND} there"):
        fetched(address, tmp_path / "out")


def test_an_address_with_blanks_and_umlauts_is_quoted(server: Server, site: Path) -> None:
    address, told = server
    shutil.copytree(site / "set", site / "f%C3%BCr%20b%2F1")
    offer = look(f"{address.removesuffix('/set')}/f\u00fcr b%2F1?token=a b%20c", PLAIN)
    assert offer.manifest == read_manifest(site / "set")
    assert told.asked[0][0] == "/f%C3%BCr%20b%2F1/manifest.json?token=a%20b%20c"


def test_a_server_that_is_not_there() -> None:
    with serving(Path("/nonexistent")) as (address, _):
        pass
    with pytest.raises(CutOffError, match=r"the connection failed while manifest\.json was fetched"):
        look(address, PLAIN)


def test_two_programs_share_one_transfer(server: Server) -> None:
    address, told = server
    told.delay = 0.02
    offers = [look(address, PLAIN) for _ in range(2)]
    threads = [threading.Thread(target=pull, args=(offer, PLAIN)) for offer in offers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told.shards_asked()) == [FIRST, SECOND, THIRD]
    assert verify_set(cached_set(offers[0].digest), offers[0].manifest) == []


def test_a_manifest_that_came_as_sent_is_kept_as_it_is(server: Server, site: Path, tmp_path: Path) -> None:
    address, _ = server
    path = site / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    (site / "set" / "README.md").write_text("<script>")
    folder = fetched(address, tmp_path / "out")
    assert (folder / "manifest.json").read_bytes() == path.read_bytes()
    assert "<script>" not in (folder / "README.md").read_text(), "the card is written from the manifest"


def test_another_machine_of_a_job_fetches_the_same_set(
    server: Server, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, told = server
    first = locate(address, PLAIN)
    told.asked.clear()
    assert also_here(first, address, PLAIN) == first
    assert told.asked == [], "on the same machine nothing is asked again"
    monkeypatch.setenv("CLUSTERQ_CACHE", str(tmp_path / "elsewhere"))
    shutil.move(first.folder, tmp_path / "gone")
    there = also_here(first, address, PLAIN)
    assert (there.digest, there.folder.is_relative_to(tmp_path / "elsewhere")) == (first.digest, True)
    edit_manifest(site / "set", lambda values: values.update(note="the same images, described otherwise"))
    with pytest.raises(ClusterqError, match="has changed while this job was started"):
        also_here(first, address, PLAIN)
    shutil.rmtree(site / "set")
    write_set(site / "set", seed=5)
    with pytest.raises(ClusterqError, match="has changed while this job was started"):
        also_here(first, address, PLAIN)


def test_another_machine_of_a_job_must_hold_the_same_folder(site: Path) -> None:
    first = locate(site / "set", PLAIN)
    assert also_here(first, site / "set", PLAIN) == first
    edit_manifest(site / "set", lambda values: values.update(note="the same images, described otherwise"))
    with pytest.raises(ClusterqError, match="holds another set on this machine"):
        also_here(first, site / "set", PLAIN)
