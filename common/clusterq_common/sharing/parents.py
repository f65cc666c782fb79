"""Signatures that a derived set carries on from the sets it was made from."""

from clusterq_common.progress.console import warn
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.write import PARENT_SIGNATURES, SIGNATURE
from clusterq_common.sharing.signature import (
    Signature,
    check_parents,
    check_signature,
    manifest_digest,
    parents_file,
    read_parents,
    read_signature,
)


def signatures_under(sets: list[ShardSet]) -> bytes | None:
    """Return the file of valid signatures under sets and their parents, for a set made from them; None if there are none.

    Raises:
        ClusterqError: a signature does not hold.
    """
    signatures: dict[tuple[str, str], Signature] = {}
    for shards in sets:
        own, of_parents = read_signature(shards.folder), read_parents(shards.folder)
        if own is not None:
            check_signature(own, shards.manifest, manifest_digest(shards.folder), str(shards.folder / SIGNATURE))
        check_parents(of_parents, shards.manifest, str(shards.folder / PARENT_SIGNATURES))
        for signature in [*([own] if own is not None else []), *of_parents]:
            signatures.setdefault((signature.set, signature.key), signature)
    unsigned = [str(shards.folder) for shards in sets if read_signature(shards.folder) is None]
    if signatures and unsigned:
        warn(f"{', '.join(unsigned)}: unsigned, so the new set has no signature for that part.")
    return parents_file(list(signatures.values())) if signatures else None
