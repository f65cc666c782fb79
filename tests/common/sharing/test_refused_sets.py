"""Sets that are refused, and folders that stay as they are."""

import os
import shutil
from pathlib import Path

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.shards.manifest import Shard, read_manifest
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.fetch import fetch_shard, partial_name
from clusterq_common.sharing.http import HttpRemote
from clusterq_common.sharing.offer import look
from tests.common.shard_samples import edit_manifest, write_set
from tests.common.sharing.test_pull import FIRST, PLAIN, Server, fetched, files


def test_other_bytes_are_refused_and_removed(server: Server, site: Path, tmp_path: Path) -> None:
    address, told = server
    data = bytearray((site / "set" / FIRST).read_bytes())
    data[1000] ^= 1
    told.replaced = {FIRST: bytes(data)}
    with pytest.raises(ClusterqError, match="other bytes than its manifest says"):
        fetched(address, tmp_path / "out")
    # The folder is gone, too, where nothing else had arrived.
    assert not list((tmp_path / "out").glob(f"{FIRST}*"))


@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused_before_the_bytes(server: Server, site: Path, tmp_path: Path, change: int) -> None:
    address, told = server
    size = (site / "set" / FIRST).stat().st_size
    told.declared = {FIRST: size + change}
    with pytest.raises(ClusterqError, match=rf"has {size + change} bytes there, its manifest says {size}"):
        fetched(address, tmp_path / "out")


def test_too_large_a_set_moves_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address, told = server
    small = SharingConfig(max_bytes="10kB")
    with pytest.raises(ClusterqError, match=r"max_bytes: the set at .* expected at most 10kB"):
        fetched(address, tmp_path / "out", small)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ClusterqError, match=r"the disk has 1\.00 kB left"):
        fetched(address, tmp_path / "out")
    assert told.shards_asked() == []
    assert not (tmp_path / "out").exists()


def test_a_size_that_no_float_holds_is_too_large(server: Server, site: Path) -> None:
    address, _ = server
    edit_manifest(site / "set", lambda values: values["splits"]["train"]["shards"][0].update(bytes=10**400))
    with pytest.raises(ClusterqError, match="TB, expected at most 50GB"):
        fetched(address)


def test_a_set_of_another_format_or_a_huge_manifest_moves_nothing(server: Server, site: Path) -> None:
    address, told = server
    edit_manifest(site / "set", lambda values: values.update(format="clusterq-shards/99"))
    with pytest.raises(ClusterqError, match="update clusterq"):
        look(address, PLAIN)
    told.declared = {"manifest.json": 33 << 20}
    with pytest.raises(ClusterqError, match="more than 33554432 bytes"):
        look(address, PLAIN)
    told.declared.clear()
    told.replaced = {"manifest.json": b"<html>"}
    with pytest.raises(ClusterqError, match="is no JSON"):
        look(address, PLAIN)
    told.replaced = {"manifest.json": b"[" * 100_000}
    with pytest.raises(ClusterqError, match=r"is no JSON|nested"):
        look(address, PLAIN)
    assert told.shards_asked() == []


def test_no_name_leads_out_of_the_folder(server: Server, site: Path, tmp_path: Path) -> None:
    address, _ = server
    shard = read_manifest(site / "set").splits["train"].shards[0]
    remote = HttpRemote(address, address)
    for name in (
        "../synth-train-000000.tar",
        "/etc/x",
        "a/synth-train-000000.tar",
        "manifest.json",
        "synth-train-000000.tar\n",
    ):
        with pytest.raises(ClusterqError, match="no name of a shard"):
            fetch_shard(remote, Shard.model_construct(**{**shard.model_dump(), "file": name}), tmp_path / "in")
    edit_manifest(site / "set", lambda values: values["splits"]["train"]["shards"][0].update(file="../synth-train-000000.tar"))
    with pytest.raises(ClusterqError, match="no shard name"):
        look(address, PLAIN)


def test_nothing_is_written_through_links(server: Server, site: Path, tmp_path: Path) -> None:
    address, _ = server
    shard = read_manifest(site / "set").splits["train"].shards[0]
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    for link in (os.symlink, os.link):
        out = tmp_path / link.__name__
        out.mkdir()
        link(victim, out / partial_name(shard))
        with pytest.raises(ClusterqError, match=r"is a link|no file of its own"):
            fetched(address, out)
    out = tmp_path / "planted"
    out.mkdir()
    (out / FIRST).symlink_to(victim)
    with pytest.raises(ClusterqError, match="is not the shard of that name"):
        fetched(address, out)
    assert victim.read_bytes() == b"mine"


def test_a_folder_with_other_things_is_left_alone(server: Server, site: Path, tmp_path: Path) -> None:
    address, told = server
    write_set(tmp_path / "other", seed=9)
    before = files(tmp_path / "other")
    with pytest.raises(ClusterqError, match="holds another set"):
        fetched(address, tmp_path / "other")
    assert files(tmp_path / "other") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ClusterqError, match=r"holds thesis\.tex"):
        fetched(address, tmp_path / "mine")
    assert told.shards_asked() == []


def test_a_limit_that_no_float_holds_is_refused() -> None:
    with pytest.raises(ClusterqError, match="max_bytes"):
        SharingConfig.validated({"max_bytes": f"{'9' * 400}TB"})
