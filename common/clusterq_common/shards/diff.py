"""Comparison of two sets: teacher, settings, counts, and the images themselves."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from clusterq_common.shards.manifest import Manifest, Shard, SplitName
from clusterq_common.shards.read import ShardSet

# Parts of the manifest that are compared as they stand. Splits are compared by their images; other parts follow from
# these, or describe the program.
FACTS = (
    "teacher",
    "class_names",
    "pixels",
    "has_logits",
    "generation",
    "derivation",
    "license",
    "note",
    "created_by",
    "versions",
)


@dataclass
class SplitDiff:
    """Images of one split.

    Attributes:
        common: in both sets.
        added: only in the second, by class index.
        gone: only in the first, by class index.
    """

    common: int = 0
    added: Counter[int] = field(default_factory=Counter)
    gone: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class SetDiff:
    """Differences between two sets.

    Attributes:
        facts: by name, such as `generation.settings.lr`, the values of the first and the second set; None for an absent one.
        splits: images, by split.
    """

    facts: dict[str, tuple[Any, Any]]
    splits: dict[SplitName, SplitDiff]

    def as_json(self) -> dict[str, Any]:
        """Return the differences as JSON-ready values."""
        return {
            "facts": {name: list(both) for name, both in self.facts.items()},
            "splits": {
                name: {"common": one.common, "added": dict(sorted(one.added.items())), "gone": dict(sorted(one.gone.items()))}
                for name, one in self.splits.items()
            },
        }


def diff(first: ShardSet, second: ShardSet, *, advance: Callable[[int], None] = lambda _: None) -> SetDiff:
    """Compare two sets. Images are equal if label and pixels are, whatever their encoding and their place in the set.

    Shards that both sets have are not read. Their digests in the manifests are compared, and the files' hashes were compared when the
    sets were opened.

    Args:
        first, second: sets, such as an earlier and a later one.
        advance: called with the number of images that were read.

    Raises:
        ClusterqError: a tar holds what no shard of clusterq holds.
    """
    names = [name for name in ("train", "heldout") if name in first.manifest.splits or name in second.manifest.splits]
    return SetDiff(
        facts=_facts(first.manifest, second.manifest), splits={name: _images(first, second, name, advance) for name in names}
    )


def images_to_look_at(first: ShardSet, second: ShardSet) -> int:
    """Return the number of images that a comparison reads."""
    names: tuple[SplitName, ...] = ("train", "heldout")
    return sum(
        shard.samples
        for name in names
        for one, other in ((first, second), (second, first))
        for shard in _apart(one, other, name)
    )


def _images(first: ShardSet, second: ShardSet, name: SplitName, advance: Callable[[int], None]) -> SplitDiff:
    ours, theirs = (_seen(one, other, name, advance) for one, other in ((first, second), (second, first)))
    shared = {shard.content for shard in _listed(first, name)} & {shard.content for shard in _listed(second, name)}
    difference = SplitDiff(common=sum(shard.samples for shard in _listed(first, name) if shard.content in shared))
    # Images are counted, because one may be in a set several times.
    common = ours & theirs
    difference.common += common.total()
    for (label, _), count in (ours - common).items():
        difference.gone[label] += count
    for (label, _), count in (theirs - common).items():
        difference.added[label] += count
    return difference


def _seen(shards: ShardSet, other: ShardSet, name: SplitName, advance: Callable[[int], None]) -> Counter[tuple[int, bytes]]:
    """Return label and digest of each image in the shards that the other set does not have."""
    apart = {shard.file for shard in _apart(shards, other, name)}
    seen: Counter[tuple[int, bytes]] = Counter()
    if not apart:
        return seen
    split = shards.split(name)
    for number in range(len(split)):
        if split.shard(number) in apart:
            sample = split.read_sample(number)
            seen[sample.label, sample.content] += 1
            advance(1)
    return seen


def _apart(shards: ShardSet, other: ShardSet, name: SplitName) -> list[Shard]:
    there = {shard.content for shard in _listed(other, name)}
    return [shard for shard in _listed(shards, name) if shard.content not in there]


def _listed(shards: ShardSet, name: SplitName) -> list[Shard]:
    split = shards.manifest.splits.get(name)
    return [] if split is None else split.shards


def _facts(first: Manifest, second: Manifest) -> dict[str, tuple[Any, Any]]:
    ours, theirs = (_flat(manifest.model_dump(mode="json", include=set(FACTS))) for manifest in (first, second))
    names = [*ours, *(name for name in theirs if name not in ours)]
    return {name: (ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)}


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat
