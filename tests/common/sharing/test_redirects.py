"""Redirects: which are followed, and with what."""

import base64
import shutil
from pathlib import Path

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.sharing.fetch import fetch_shard
from clusterq_common.sharing.http import HttpRemote
from clusterq_common.sharing.offer import look
from clusterq_common.sharing.origin import origin_of
from tests.common.sharing.servers import Behaviour, serving
from tests.common.sharing.test_pull import FIRST, PLAIN, SECOND, Server, fetched


def test_redirects_keep_credentials_with_their_server(site: Path, tmp_path: Path) -> None:
    secret = base64.b64encode(b"me:pa ss").decode()
    with serving(site, Behaviour(password=secret)) as (first, told), serving(site) as (other, elsewhere):
        told.redirect = {FIRST: f"{other}/set/{FIRST}", SECOND: f"{first}/set/copy/{SECOND}"}
        shutil.copytree(site / "set", site / "set" / "copy")
        named = first.replace("http://", "http://me:pa%20ss@") + "/set?sig=hidden"
        told.redirect[SECOND] = f"{first}/set/copy-{SECOND}"
        shutil.copy(site / "set" / SECOND, site / "set" / f"copy-{SECOND}")
        told.redirect = {f"/{FIRST}": f"{other}/set/{FIRST}", f"/{SECOND}": f"{first}/set/copy-{SECOND}"}
        folder = fetched(named, tmp_path / "out")
        assert ShardSet.open(folder).manifest == read_manifest(site / "set")
        assert [(path, authorization) for path, _, authorization in elsewhere.asked] == [(f"/set/{FIRST}", None)]
        assert {authorization for _, _, authorization in told.asked} == {f"Basic {secret}"}
        assert f"/set/{FIRST}?sig=hidden" in [path for path, _, _ in told.asked]
        origin = origin_of(folder)
        assert origin is not None
        kept = "".join(path.read_text(errors="replace") for path in (tmp_path / "cache").rglob("*.json"))
        for secret_part in ("pa ss", "pa%20ss", "hidden", secret):
            assert secret_part not in kept
        told.password = "changed"
        with pytest.raises(ClusterqError, match=r"refuses manifest\.json \(401\)") as refused:
            look(named, PLAIN)
        assert "hidden" not in str(refused.value)
        assert "pa" not in str(refused.value).partition("(401)")[0]


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("http://192.0.2.1/x", "without encryption"),
        ("ftp://localhost/x", "no address of a web server"),
        ("file:///etc/passwd", "no address of a web server|refuses"),
        ("https://a:b@192.0.2.1/x", "holds credentials"),
    ],
)
def test_redirects_to_unsafe_places_are_not_followed(server: Server, to: str, why: str, tmp_path: Path) -> None:
    address, told = server
    told.redirect = {FIRST: to}
    with pytest.raises(ClusterqError, match=why):
        fetched(address, tmp_path / "out")


def test_a_redirect_from_another_machine_to_this_one_is_not_followed() -> None:
    from email.message import Message
    from io import BytesIO
    from urllib.request import Request

    from clusterq_common.sharing.http import _RedirectError, _Redirects

    rule = _Redirects("https://example.org/set", {}, allow_http=True)
    spellings = (
        "https://0.0.0.0/x",
        "https://127.1/x",
        "https://2130706433/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://a.localhost./x",
    )
    for to in ("http://127.0.0.1/x", "https://localhost/x", *spellings):
        with pytest.raises(_RedirectError, match="to this machine itself"):
            rule.redirect_request(Request("https://example.org/set/a"), BytesIO(), 302, "", Message(), to)


def test_what_comes_with_a_redirect_is_not_read(server: Server, site: Path, tmp_path: Path) -> None:
    address, told = server
    shutil.copy(site / "set" / FIRST, site / "set" / "copy.tar")
    told.redirect, told.redirect_length = {FIRST: f"{address}/copy.tar"}, 1 << 40
    shard = read_manifest(site / "set").splits["train"].shards[0]
    fetch_shard(HttpRemote(address, address, patience=2.0), shard, tmp_path)
    assert (tmp_path / FIRST).read_bytes() == (site / "set" / FIRST).read_bytes()


@pytest.mark.parametrize("to", ["https://[::1", "https://a..b/x"])
def test_a_redirect_to_what_is_no_address_is_an_error_of_the_server(server: Server, to: str, tmp_path: Path) -> None:
    address, told = server
    told.redirect = {FIRST: to}
    with pytest.raises(ClusterqError, match=r"synth-train-000000\.tar cannot be asked for"):
        fetched(address, tmp_path / "out")


def test_a_redirect_in_circles_ends(server: Server, tmp_path: Path) -> None:
    address, told = server
    told.redirect = {FIRST: f"{address}/{FIRST}"}
    with pytest.raises(ClusterqError, match=r"refuses .* \(302\)"):
        fetched(address, tmp_path / "out")
