"""Small sets of shards for the tests to write, read and spoil."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clusterq_common.images import png
from clusterq_common.shards.digest import sample_digest
from clusterq_common.shards.manifest import (
    MEANING,
    Generation,
    Manifest,
    Pixels,
    Split,
    SplitName,
    TeacherFacts,
    meaning_of,
    set_digest,
)
from clusterq_common.shards.sample import Sample
from clusterq_common.shards.write import Written, shard_name, write_manifest, write_shard
from clusterq_common.teacher.spec import InputSpec

GREY = InputSpec(size=8, channels=1, num_classes=3, mean=(0.4,), std=(0.3,))
COLOUR = InputSpec(size=16, channels=3, num_classes=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def samples(count: int, *, logits: bool = True, seed: int = 0) -> list[Sample]:
    """Random grey images of three classes."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        label = number % 3
        pixels = random.integers(256, size=(8, 8, 1), dtype=np.uint8)
        values = random.standard_normal(3).astype(np.float16) if logits else None
        content = sample_digest(label, pixels)
        made.append(Sample(png.encode(pixels), content, label, label, seed, number // 3, label, 0.5 + label / 10, values))
    return made


def manifest_of(splits: dict[SplitName, Split], *, logits: bool = True, seed: int = 0) -> Manifest:
    """A manifest for these splits, as a generator would write it."""
    return Manifest(
        format="clusterq-shards/1",
        digest=set_digest(splits),
        created_by="clusterq test",
        commit=None,
        teacher=TeacherFacts(
            arch="resnet20_cifar10",
            is_factory=False,
            digest="sha256:" + "0" * 64,
            parameters=1000,
            batchnorm_layers=2,
            spec=GREY,
        ),
        pixels=Pixels(clipped=0.0),
        has_logits=logits,
        mean_confidence=0.6,
        generation=Generation(
            method="gdfq",
            settings={"lr": 0.1},
            source="sha256:" + "1" * 64,
            seed=seed,
            rounds=[{"train": 4}],
            candidates=12,
            rejected=[0, 0, 0],
            teacher_agreement=1.0,
            keep_misclassified=False,
            chunk=64,
            samples_per_shard=5,
            device="cpu",
            threads=1,
        ),
        splits=splits,
        versions={},
    )


def write_set(folder: Path, count: int = 12, *, logits: bool = True, seed: int = 0) -> list[Sample]:
    """A training split in shards of five; returns its samples."""
    made = samples(count, logits=logits, seed=seed)
    written = Written.nothing(3)
    for number, start in enumerate(range(0, count, 5)):
        name = shard_name("train", number)
        written.add(write_shard(folder, name, made[start : start + 5], start_key=start, num_classes=3))
    write_manifest(folder, manifest_of({"train": written.split()}, logits=logits, seed=seed))
    return made


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    if isinstance(values.get(MEANING), str):
        values[MEANING] = meaning_of(values)
    path.write_text(json.dumps(values))
