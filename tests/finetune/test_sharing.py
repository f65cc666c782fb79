"""Sets by their addresses and makers on the command line."""

import json
from pathlib import Path

import pytest

from clusterq_cli.main import same_command
from clusterq_common.run.environment import environment
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.sharing import remote
from tests.common.shard_samples import write_set
from tests.common.sharing.servers import Behaviour, serving
from tests.conftest import FACTORY, Cli, DigitsTeacher

pytest.importorskip("cryptography", reason="signatures need the extra `sign`")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.0)


def last_json(out: str) -> dict[str, object]:
    result = json.loads(out.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def test_keys_signatures_and_rules(finetune: Cli, tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    made = finetune("shards", "keygen", "--out", tmp_path / "key", "--name", "Team A")
    assert made.code == 0, made.err
    assert "SHA256:" in made.out
    unsigned = finetune("shards", "verify", tmp_path / "set", "--trust", tmp_path / "key.pub")
    assert unsigned.code == 2
    assert "manifest.signature.json" in unsigned.out
    assert "does not vouch for it" in unsigned.err
    signed = finetune("shards", "sign", tmp_path / "set", "--key", tmp_path / "key", "--json")
    assert signed.code == 0, signed.err
    assert last_json(signed.out)["set"] == read_manifest(tmp_path / "set").digest
    rules = ("--trust", tmp_path / "key.pub", "--require-signed")
    good = finetune("shards", "verify", tmp_path / "set", *rules, "--json")
    assert good.code == 0, good.out
    assert "signed by Team A" in good.out
    assert last_json(good.out)["maker"]["name"] == "Team A"
    other = finetune("shards", "keygen", "--out", tmp_path / "other")
    assert other.code == 0
    known = finetune("shards", "info", tmp_path / "set")
    assert "maker:     signed by a key that you have not named as trusted" in known.out
    assert "version:   1+" in known.out
    assert "age:       signed just now" in known.out
    replaced = finetune("shards", "sign", tmp_path / "set", "--key", tmp_path / "other")
    assert replaced.code == 2
    assert "--overwrite" in replaced.err
    assert finetune("shards", "sign", tmp_path / "set", "--key", tmp_path / "other", "--overwrite").code == 0
    refused = finetune("shards", "preview", tmp_path / "set", *rules, "--out", tmp_path / "p.png")
    assert refused.code == 2
    assert "--require-signed" in refused.err
    assert not (tmp_path / "p.png").exists()
    (tmp_path / "set" / "synth-train-000000.tar").write_bytes(b"")
    assert "cut short" in finetune("shards", "sign", tmp_path / "set", "--key", tmp_path / "other").err


def test_every_use_of_an_unsigned_set_says_so(finetune: Cli, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_set(tmp_path / name, seed=seed)
    uses = {
        "info": (),
        "verify": (),
        "preview": ("--out", tmp_path / "p.png"),
        "subset": ("--per-class", 1, "--out", tmp_path / "few"),
        "repair": ("--out", tmp_path / "mended"),
        "merge": (tmp_path / "b", "--out", tmp_path / "both"),
        "diff": (tmp_path / "b",),
    }
    for command, rest in uses.items():
        done = finetune("shards", command, tmp_path / "a", *rest)
        assert done.code == 0, done.err
        assert "unsigned: who made it cannot be told" in done.out + done.err, command


def test_a_pull_and_what_is_known_afterwards(finetune: Cli, tmp_path: Path) -> None:
    write_set(tmp_path / "site" / "set")
    with serving(tmp_path / "site") as (address, told):
        looked = finetune("shards", "info", f"{address}/set", "--json")
        assert looked.code == 0, looked.err
        assert told.shards_asked() == []
        refused = finetune("shards", "pull", f"{address}/set", "--max-bytes", "1kB")
        assert refused.code == 2
        assert "--max-bytes" in refused.err
        wrong = finetune("shards", "pull", f"{address}/set", "--max-bytes", "many")
        assert wrong.code == 2
        assert "as 500MB" in wrong.err
        pulled = finetune("shards", "pull", f"{address}/set", "--out", tmp_path / "out", "--json")
        assert pulled.code == 0, pulled.err
        assert last_json(pulled.out)["address"] == f"{address}/set"
        for command in ("verify", "log", "preview"):
            done = finetune(
                "shards", command, f"{address}/set", *(["--out", tmp_path / "p.png"] if command == "preview" else [])
            )
            assert done.code == 0, done.err
        same = finetune("shards", "diff", f"{address}/set", tmp_path / "out", "--json")
        assert last_json(same.out)["facts"] == {}
    assert f"address:   {address}/set" in finetune("shards", "info", tmp_path / "out").out
    assert "emitted" in finetune("shards", "log", tmp_path / "out").out
    assert "is no address" in finetune("shards", "pull", tmp_path / "out").err
    assert "is no address" in finetune("shards", "push", tmp_path / "out", tmp_path / "copy").err
    assert "takes no files" in finetune("shards", "push", tmp_path / "out", "https://example.org/x").err


def test_a_student_from_an_address_names_it_and_no_credentials(
    finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(digits_run, Behaviour(password="bWU6c2VjcmV0")) as (address, told):
        named = address.replace("http://", "http://me:secret@") + "/shards?sig=hidden"
        monkeypatch.setattr("sys.argv", ["clusterq-finetune", "--shards", named])
        flags = ("--arch", FACTORY, "--weights", digits_teacher.weights, "--bits", "w8a8", "--epochs", 0, "--device", "cpu")
        done = finetune("--shards", named, *flags, "--out", tmp_path / "out", "--json")
        assert done.code == 0, done.err
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        assert result["shards"]["address"] == result["settings"]["shards"] == f"{address}/shards"
        assert result["shards"]["digest"] == result["settings"]["shards_digest"] == read_manifest(digits_run / "shards").digest
        assert result["shards"]["manifest"] == read_manifest(digits_run / "shards").meaning
        assert result["shards"]["maker"] is None
        everything = (
            done.out + done.err + "".join(p.read_text(errors="replace") for p in (tmp_path / "out").rglob("*") if p.is_file())
        )
        assert "me:" + "secret" not in everything
        assert "hidden" not in everything
        told.password, told.asked[:] = None, []
        for words in (("--config", tmp_path / "out" / "config.yaml"), ("reproduce", tmp_path / "out")):
            unasked = finetune(*words, "--out", tmp_path / "unasked")
            assert unasked.code == 2
            assert f"--shards: {tmp_path}" in unasked.err
            assert f"names the address {address}/shards, expected it on the command line" in unasked.err
        assert told.asked == [], "a file asks no server"
        weights = ("--arch", FACTORY, "--weights", digits_teacher.weights)
        again = finetune("reproduce", tmp_path / "out", "--shards", f"{address}/shards", "--out", tmp_path / "again", *weights)
        assert again.code == 0, again.err
        assert "identical" in again.out
        assert told.shards_asked() == [], "the cache has them"
        told.password = "other"
        failed = finetune("--shards", named, *flags, "--out", tmp_path / "no", "--debug")
        assert failed.code == 2
        assert "(401)" in failed.err
        assert "hidden" not in failed.err


def test_the_command_in_a_runs_environment_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("sys.argv", ["clusterq-finetune", "--shards=https://me:secret@host/set?sig=hidden"])
    assert environment(torch.device("cpu"))["command"] == ["clusterq-finetune", "--shards=https://host/set"]


def test_the_command_that_goes_on_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--shards", "https://me:secret@host/set?sig=hidden", "--overwrite"])
    assert same_command("clusterq-finetune", "--resume") == "clusterq-finetune --shards https://host/set --resume"
