"""Sets that are used straight from an address: by a Python program, and by commands beside fine-tuning."""

from pathlib import Path

import pytest

import clusterq as cq
from clusterq_common.errors import ClusterqError
from clusterq_common.shards.manifest import read_manifest
from tests.common.sharing.servers import Behaviour
from tests.conftest import Cli

Server = tuple[str, Behaviour]


def test_a_python_program_opens_an_address(server: Server, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address, told = server
    lines: list[str] = []
    shards = cq.open_shards(address, log=lines.append)
    assert shards.manifest == read_manifest(site / "set")
    assert any("unsigned" in line for line in lines)
    told.asked.clear()
    assert cq.open_shards(address).manifest == shards.manifest
    assert told.shards_asked() == []
    assert cq.open_shards(site / "set").folder == site / "set"
    assert capsys.readouterr() == ("", ""), "nothing is printed unasked"
    with pytest.raises(ClusterqError, match=r"^require_signed: there is no trust"):
        cq.open_shards(site / "set", require_signed=True)
    with pytest.raises(ClusterqError, match="max_bytes"):
        cq.open_shards(address, max_bytes="1kB")


def test_figures_take_addresses_and_rules(server: Server, site: Path, finetune: Cli, tmp_path: Path) -> None:
    address, _ = server
    done = finetune("figures", "grid", address, "--out", tmp_path / "grid", "--format", "png")
    assert done.code == 0, done.err
    assert (tmp_path / "grid.png").is_file()
    assert "unsigned" in done.err
    done = finetune("figures", "grid", site / "set", "--require-signed", "--out", tmp_path / "other")
    assert (done.code, "--require-signed: there is no --trust" in done.err) == (2, True), done.err
