"""Who made a set: signatures, and the rules about them."""

import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.shards.derive import merge, subset
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.verify import verify_set
from clusterq_common.shards.write import PARENT_SIGNATURES, SIGNATURE, write_manifest
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.keys import load_private
from clusterq_common.sharing.makers import maker_of
from clusterq_common.sharing.offer import look
from clusterq_common.sharing.parents import signatures_under
from clusterq_common.sharing.place import locate
from clusterq_common.sharing.pull import pull
from clusterq_common.sharing.push import push
from clusterq_common.sharing.signature import manifest_digest, read_parents, sign, write_signature
from tests.common.shard_samples import edit_manifest, write_set
from tests.common.sharing.servers import Behaviour

pytest.importorskip("cryptography", reason="signatures need the extra `sign`")
THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def trusting(keys: dict[str, Path], name: str, *, required: bool = True) -> SharingConfig:
    return SharingConfig(trust=keys[name].with_name(f"{name}.pub"), require_signed=required)


def signed(folder: Path, key: Path) -> Path:
    manifest = read_manifest(folder)
    write_signature(folder, sign(manifest, manifest_digest(folder), load_private(key), THEN))
    return folder


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / SIGNATURE
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def judged(folder: Path, config: SharingConfig | None = None) -> str:
    return maker_of(folder, read_manifest(folder), config or SharingConfig()).description()


def test_a_signed_set_has_a_known_maker(tmp_path: Path, keys: dict[str, Path]) -> None:
    write_set(tmp_path / "set")
    assert judged(tmp_path / "set") == "unsigned: who made it cannot be told"
    with pytest.raises(ClusterqError, match=r"require_signed: .*set is unsigned"):
        judged(tmp_path / "set", trusting(keys, "a"))
    signed(tmp_path / "set", keys["a"])
    assert judged(tmp_path / "set", trusting(keys, "a")).startswith("signed by team A (SHA256:")
    assert judged(tmp_path / "set").startswith("signed by a key that you have not named")
    with pytest.raises(ClusterqError, match=r"require_signed: .* is signed by a key that you have not named"):
        judged(tmp_path / "set", trusting(keys, "b"))
    assert "not named" in judged(tmp_path / "set", trusting(keys, "b", required=False))
    with pytest.raises(ClusterqError, match="there is no trust"):
        judged(tmp_path / "set", SharingConfig(require_signed=True))


def test_openssl_confirms_a_signature(tmp_path: Path, keys: dict[str, Path]) -> None:
    """The signature is plain Ed25519 over the text that the page on the format gives."""
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    write_set(tmp_path / "set")
    values = json.loads((signed(tmp_path / "set", keys["a"]) / SIGNATURE).read_text())
    text = f"clusterq-signature/1\nset {values['set']}\nmanifest {values['manifest']}\nsigned 2026-01-02T03:04:05Z\n"
    raw = base64.b64decode(values["key"].split()[1])[-32:]
    Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(values["signature"]), text.encode())
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["meaning"] == values["manifest"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v.update(signed_at="2026-01-02T03:04:06Z"),
        lambda v: v.update(signature=v["signature"][:-4] + "AAA="),
        lambda v: v.update(signature="AAAA"),
        lambda v: v.update(signature="?"),
        lambda v: v.update(set="sha256:" + "0" * 64),
        lambda v: v.update(manifest="sha256:" + "0" * 64),
        lambda v: v.update(key="ssh-ed25519 AAAA"),
        lambda v: v.update(key="x"),
        lambda v: v.update(signed_at="2026-13-02T03:04:06Z"),
        lambda v: v.update(format="clusterq-signature/2"),
        lambda v: v.update(more=1),
        lambda v: v.pop("key"),
        lambda v: v.update(more="x" * 20_000),
        lambda v: v.update(set={"a": [[[[[[[[[[[[]]]]]]]]]]]]}),
    ],
)
def test_a_signature_that_was_touched_is_refused_whatever_the_rules(
    tmp_path: Path, keys: dict[str, Path], edit: Callable[[dict[str, Any]], object]
) -> None:
    write_set(tmp_path / "set")
    change(signed(tmp_path / "set", keys["a"]), edit)
    with pytest.raises(ClusterqError, match=SIGNATURE):
        judged(tmp_path / "set")


def test_another_key_manifest_or_file_is_refused(tmp_path: Path, keys: dict[str, Path]) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        write_set(tmp_path / name, seed=seed)
        signed(tmp_path / name, keys["a"])
    first, second = tmp_path / "one", tmp_path / "two"
    other = json.loads((signed(first, keys["b"]) / SIGNATURE).read_text())["key"]
    signed(first, keys["a"])
    change(first, lambda v: v.update(key=other))
    with pytest.raises(ClusterqError, match="not that of the key it names"):
        judged(first)
    shutil.copy(second / SIGNATURE, first / SIGNATURE)
    with pytest.raises(ClusterqError, match="under another manifest"):
        judged(first)
    signed(first, keys["a"])
    # The licence is no part of the set's digest; it is part of what was signed.
    edit_manifest(first, lambda values: values.update(license="CC0-1.0"))
    with pytest.raises(ClusterqError, match="under another manifest"):
        judged(first)
    for text in ("", "{", "[]", "null", "\xff", "[" * 5000):
        (second / SIGNATURE).write_bytes(text.encode("latin-1"))
        with pytest.raises(ClusterqError, match="is no signature"):
            judged(second)
    (second / SIGNATURE).unlink()
    (second / SIGNATURE).symlink_to(first / SIGNATURE)
    with pytest.raises(ClusterqError, match="no plain file"):
        judged(second)


def test_a_manifest_of_an_earlier_version_can_be_signed(tmp_path: Path, keys: dict[str, Path]) -> None:
    write_set(tmp_path / "set")
    edit_manifest(tmp_path / "set", lambda values: values.pop("meaning"))
    assert "team A" in judged(signed(tmp_path / "set", keys["a"]), trusting(keys, "a"))


def test_readers_without_signatures_see_the_same_set(tmp_path: Path, keys: dict[str, Path]) -> None:
    write_set(tmp_path / "set")
    before = ShardSet.open(tmp_path / "set").manifest
    signed(tmp_path / "set", keys["a"])
    assert ShardSet.open(tmp_path / "set").manifest == before
    assert verify_set(tmp_path / "set", before) == [], "a signature is no unknown file"


def test_writing_a_changed_manifest_removes_its_old_signature(tmp_path: Path, keys: dict[str, Path]) -> None:
    write_set(tmp_path / "set")
    manifest = read_manifest(signed(tmp_path / "set", keys["a"]))
    write_manifest(tmp_path / "set", manifest.model_copy(update={"meaning": None}))
    assert (tmp_path / "set" / SIGNATURE).is_file(), "the same manifest, written again"
    write_manifest(tmp_path / "set", manifest.model_copy(update={"meaning": None, "note": "more"}))
    assert not (tmp_path / "set" / SIGNATURE).exists()


def test_derived_sets_carry_their_parents_signatures(tmp_path: Path, keys: dict[str, Path]) -> None:
    for name, seed in (("one", 1), ("two", 2), ("three", 3)):
        write_set(tmp_path / name, seed=seed)
    for name, key in (("one", "a"), ("two", "b")):
        signed(tmp_path / name, keys[key])
    pair = [ShardSet.open(tmp_path / name) for name in ("one", "two")]
    merge(pair, tmp_path / "pair", signatures=signatures_under(pair))
    both = ShardSet.open(tmp_path / "pair")
    assert [part.set for part in read_parents(both.folder)] == [part.manifest.digest for part in pair]
    assert judged(both.folder) == "unsigned: who made it cannot be told", "parents' signatures are not its own"
    more = [both, ShardSet.open(tmp_path / "three")]
    merge(more, tmp_path / "all", signatures=signatures_under(more))
    subset(
        ShardSet.open(tmp_path / "all"),
        tmp_path / "few",
        per_class=1,
        signatures=signatures_under([ShardSet.open(tmp_path / "all")]),
    )
    assert read_parents(tmp_path / "few") == read_parents(tmp_path / "pair")
    assert verify_set(tmp_path / "few", read_manifest(tmp_path / "few")) == []
    judged(signed(tmp_path / "few", keys["a"]), trusting(keys, "a"))
    # Under a set that is no parent, and by a key that did not sign.
    path = tmp_path / "few" / PARENT_SIGNATURES
    values = json.loads(path.read_text())
    stranger = json.loads((signed(tmp_path / "three", keys["a"]) / SIGNATURE).read_text())
    for wrong, why in (({**values["signatures"][0], "signed_at": "2027-01-02T03:04:05Z"}, "not that of the key"),):
        path.write_text(json.dumps({**values, "signatures": [wrong]}))
        with pytest.raises(ClusterqError, match=why):
            judged(tmp_path / "few")
    stranger_set = tmp_path / "stranger"
    write_set(stranger_set, seed=7)
    stranger = json.loads((signed(stranger_set, keys["a"]) / SIGNATURE).read_text())
    path.write_text(json.dumps({**values, "signatures": [stranger]}))
    with pytest.raises(ClusterqError, match="no parent of this set"):
        judged(tmp_path / "few")
    path.write_text("x" * (2 << 20))
    with pytest.raises(ClusterqError, match="more than 1048576 bytes"):
        judged(tmp_path / "few")


def test_a_signature_that_does_not_hold_stops_a_merge(tmp_path: Path, keys: dict[str, Path]) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        write_set(tmp_path / name, seed=seed)
        signed(tmp_path / name, keys["a"])
    shutil.copy(tmp_path / "one" / SIGNATURE, tmp_path / "two" / SIGNATURE)
    with pytest.raises(ClusterqError, match="under another manifest"):
        signatures_under([ShardSet.open(tmp_path / name) for name in ("one", "two")])


def test_the_rules_are_applied_before_anything_large_moves(
    server: tuple[str, Behaviour], site: Path, tmp_path: Path, keys: dict[str, Path]
) -> None:
    address, told = server
    with pytest.raises(ClusterqError, match=f"require_signed: {address} is unsigned"):
        locate(address, trusting(keys, "a"))
    signed(site / "set", keys["a"])
    with pytest.raises(ClusterqError, match="require_signed"):
        locate(address, trusting(keys, "b"))
    told.replaced = {SIGNATURE: b"x" * 20_000}
    with pytest.raises(ClusterqError, match="more than 16384 bytes"):
        locate(address, SharingConfig())
    assert told.shards_asked() == []
    told.replaced.clear()
    place = locate(address, trusting(keys, "a"))
    assert place.maker.name == "team A"
    assert (place.folder / SIGNATURE).read_bytes() == (site / "set" / SIGNATURE).read_bytes()
    # Signed by another maker since: the signature is fetched again, the shards are not.
    signed(site / "set", keys["b"])
    told.asked.clear()
    assert locate(address, trusting(keys, "b")).maker.name == "team B"
    assert told.shards_asked() == []


def test_ones_own_signature_on_a_pulled_set_stays(server: tuple[str, Behaviour], tmp_path: Path, keys: dict[str, Path]) -> None:
    address, _ = server
    folder = pull(look(address, SharingConfig()), SharingConfig(), tmp_path / "out")
    signed(folder, keys["a"])
    pull(look(address, SharingConfig()), SharingConfig(), tmp_path / "out")
    assert "team A" in judged(folder, trusting(keys, "a"))


def test_web_servers_take_no_sets(server: tuple[str, Behaviour], site: Path) -> None:
    address, _ = server
    with pytest.raises(ClusterqError, match="takes no files, expected hf://"):
        push(ShardSet.open(site / "set"), address, SharingConfig())
    with pytest.raises(ClusterqError, match="public: s3://bucket/x is no dataset of the Hub"):
        push(ShardSet.open(site / "set"), "s3://bucket/x", SharingConfig(), public=True)


def test_without_the_package_a_signature_counts_for_nothing(
    tmp_path: Path, keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "set")
    signed(tmp_path / "set", keys["a"])
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert "pip install '.[sign]' in clusterq's checkout" in judged(tmp_path / "set")
    with pytest.raises(ClusterqError, match=r"the package cryptography is not installed.*pip install '\.\[sign\]'"):
        judged(tmp_path / "set", trusting(keys, "a", required=False))
    edit_manifest(tmp_path / "set", lambda values: values.update(license="CC0-1.0"))
    with pytest.raises(ClusterqError, match="under another manifest"):
        judged(tmp_path / "set")
