"""How a set came to be, and what differs between two sets."""

from collections import Counter
from pathlib import Path

from clusterq_common.shards.card import set_version
from clusterq_common.shards.derive import merge, subset
from clusterq_common.shards.diff import diff, images_to_look_at
from clusterq_common.shards.history import history, lines
from clusterq_common.shards.manifest import Derivation, Manifest, read_manifest
from clusterq_common.shards.read import ShardSet
from tests.common.shard_samples import edit_manifest, write_set


def opened(folder: Path, count: int = 12, seed: int = 0) -> ShardSet:
    write_set(folder, count, seed=seed)
    return ShardSet.open(folder)


def test_each_round_of_an_emission_is_a_step(tmp_path: Path) -> None:
    write_set(tmp_path / "set", seed=3)
    edit_manifest(tmp_path / "set", lambda m: m["generation"].update(rounds=[{"train": 4, "heldout": 1}, {"train": 2}]))
    manifest = read_manifest(tmp_path / "set")
    assert [(step.depth, step.what, step.how) for step in history(manifest)] == [
        (0, "emitted", "4 train, 1 heldout images of each class by gdfq, seed 3"),
        (0, "extended", "2 train images of each class"),
    ]
    assert set_version(manifest) == f"2+{manifest.digest[7:15]}"


def test_given_images_are_said_to_be_given(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    edit_manifest(tmp_path / "set", lambda m: m["generation"].update(method="given"))
    assert [step.what for step in history(read_manifest(tmp_path / "set"))] == ["given"]


def test_a_derived_set_tells_of_all_that_it_comes_from(tmp_path: Path) -> None:
    both = merge([opened(tmp_path / "a", seed=1), opened(tmp_path / "b", seed=2)], tmp_path / "both")
    few = subset(ShardSet.open(tmp_path / "both"), tmp_path / "few", per_class=2)
    told = [(step.depth, step.what) for step in history(few)]
    assert told == [(2, "emitted"), (2, "emitted"), (1, "merge"), (0, "subset")]
    assert history(few)[-1].how == "of 1 set: per_class 2"
    assert [step.set for step in history(few)][2:] == [both.digest, few.digest]
    assert lines(few)[0].startswith("    emitted")


def test_a_history_in_circles_ends(tmp_path: Path) -> None:
    manifest = merge([opened(tmp_path / "a", seed=1), opened(tmp_path / "b", seed=2)], tmp_path / "both")
    circular = Derivation(operation="merge", inputs=[manifest.digest, "sha256:" + "9" * 64], settings={})
    turning = manifest.model_copy(update={"derivation": circular})
    assert isinstance(turning, Manifest)
    assert [(step.depth, step.what) for step in history(turning)] == [(1, "unknown"), (0, "merge")]


def plain_diff(first: ShardSet, second: ShardSet) -> tuple[int, Counter[int], Counter[int]]:
    """Images in both, and by class those only in the second and only in the first, with a set of all images each."""
    seen = []
    for shards in (first, second):
        split = shards.split("train")
        seen.append([(split.label(number), split.read(number)[0].tobytes()) for number in range(len(split))])
    common = sum(sample in seen[1] for sample in seen[0])
    added = Counter(label for label, pixels in seen[1] if (label, pixels) not in seen[0])
    gone = Counter(label for label, pixels in seen[0] if (label, pixels) not in seen[1])
    return common, added, gone


def test_images_are_compared_wherever_they_lie(tmp_path: Path) -> None:
    first = opened(tmp_path / "a", 12)
    cut = subset(first, tmp_path / "cut", classes=[0, 2])
    merge([ShardSet.open(tmp_path / "cut"), opened(tmp_path / "b", 7, seed=5)], tmp_path / "second")
    second = ShardSet.open(tmp_path / "second")
    difference = diff(first, second).splits["train"]
    assert (difference.common, difference.added, difference.gone) == plain_diff(first, second)
    assert (difference.common, difference.gone) == (cut.splits["train"].samples, {1: 4})


def test_shards_that_both_have_are_not_read_again(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "a", 10), opened(tmp_path / "b", 15)
    counted: list[int] = []
    difference = diff(first, second, advance=counted.append)
    assert (
        difference.splits["train"].common,
        difference.splits["train"].added.total(),
        difference.splits["train"].gone.total(),
    ) == (10, 5, 0)
    assert len(counted) == images_to_look_at(first, second) == 5
    same = diff(first, first)
    assert same.facts == {}
    assert [(split.added.total(), split.gone.total()) for split in same.splits.values()] == [(0, 0)] * len(same.splits)


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    first = opened(tmp_path / "a")
    write_set(tmp_path / "b")
    edit_manifest(
        tmp_path / "b",
        lambda m: (
            m["generation"]["settings"].update(lr=0.2, more=1),
            m.update(license="MIT"),
            m["teacher"].update(digest="sha256:" + "7" * 64),
        ),
    )
    difference = diff(first, ShardSet.open(tmp_path / "b"))
    assert difference.facts == {
        "generation.settings.lr": (0.1, 0.2),
        "generation.settings.more": (None, 1),
        "license": (None, "MIT"),
        "teacher.digest": ("sha256:" + "0" * 64, "sha256:" + "7" * 64),
    }
    assert difference.as_json()["splits"]["train"] == {"common": 12, "added": {}, "gone": {}}
