"""The commands that send, fetch, sign and compare sets, once their flags are known."""

import getpass
import sys
from pathlib import Path
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import progress
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.diff import SetDiff, diff, images_to_look_at
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.verify import Problem
from clusterq_common.shards.write import SIGNATURE
from clusterq_common.sharing.address import is_address
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.keys import PASSPHRASE, load_private
from clusterq_common.sharing.makers import Maker, report_maker
from clusterq_common.sharing.offer import look
from clusterq_common.sharing.pull import pull
from clusterq_common.sharing.push import Pushed, push
from clusterq_common.sharing.signature import Signature, manifest_digest, read_signature, sign, write_signature

SHOWN_FACTS = 100


def fetch(address: str, out: Path | None, config: SharingConfig) -> dict[str, Any]:
    """Fetch a set. Returns the record of its origin, and its folder.

    Raises:
        ClusterqError: it is no address, or see `look` and `pull`.
    """
    if not is_address(address):
        raise ClusterqError(
            f"shards pull: {address} is no address, expected hf://, s3://, gs:// or https://; a folder needs no pull."
        )
    offer = look(address, config, None)
    report_maker(offer.remote.shown, offer.maker, config)
    folder = pull(offer, config, out)
    return {**offer.origin().model_dump(mode="json"), "folder": str(folder), "maker": offer.maker.facts()}


def send(folder: Path, address: str, config: SharingConfig, *, public: bool, overwrite: bool) -> Pushed:
    """Verify a set and send it.

    Raises:
        ClusterqError: it is damaged, or see `push`.
    """
    if not is_address(address):
        raise ClusterqError(f"shards push: {address} is no address, expected hf://, s3:// or gs://; copy the folder instead.")
    return push(ShardSet.open(folder), address, config, public=public, overwrite=overwrite)


def sign_set(folder: Path, key_file: Path, *, overwrite: bool) -> Signature:
    """Sign a set whose shards are whole.

    Raises:
        ClusterqError: the set is damaged, the key cannot be used, or another key's signature lies there already.
    """
    key = load_private(key_file, _ask_passphrase)
    shards = ShardSet.open(folder)
    made = sign(shards.manifest, manifest_digest(shards.folder), key)
    before = None if overwrite else read_signature(shards.folder)
    if before is not None and before.public_key != made.public_key:
        raise ClusterqError(
            f"{shards.folder / SIGNATURE} is of another key ({before.fingerprint}), expected none or one of yours; pass {setting_name('overwrite')} to replace "
            "it."
        )
    write_signature(shards.folder, made)
    return made


def signature_problems(maker: Maker, config: SharingConfig) -> list[Problem]:
    """Return the problems of the maker for `verify`: trusted keys were given, and the set is signed with none of them."""
    if config.trust is None or maker.name is not None:
        return []
    return [Problem(SIGNATURE, None, f"{maker.description()}, and {config.trust} names no key that has signed it")]


def compare(first: Path, second: Path) -> SetDiff:
    """See `diff`.

    Raises:
        ClusterqError: a set cannot be used.
    """
    one, other = ShardSet.open(first), ShardSet.open(second)
    with progress("comparing", images_to_look_at(one, other), images=1) as ticker:
        return diff(one, other, advance=ticker.advance)


def diff_lines(difference: SetDiff) -> list[str]:
    """Return a comparison as lines of text."""
    shown = list(difference.facts.items())[:SHOWN_FACTS]
    lines = [f"{name}: {_short(ours)} -> {_short(theirs)}" for name, (ours, theirs) in shown]
    if len(difference.facts) > SHOWN_FACTS:
        lines.append(f"... and {len(difference.facts) - SHOWN_FACTS} more")
    for name, split in difference.splits.items():
        classes = sorted({*split.added, *split.gone})
        where = f", in {len(classes)} classes" if classes else ""
        lines.append(f"{name}: {split.common} images in both, {split.added.total()} added, {split.gone.total()} gone{where}")
    return lines


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _ask_passphrase() -> str:
    if not sys.stdin.isatty():
        raise ClusterqError(
            f"the key has a passphrase, and there is no terminal to ask for it; set {PASSPHRASE}.", setting="key"
        )
    return getpass.getpass("Passphrase of the key: ")
