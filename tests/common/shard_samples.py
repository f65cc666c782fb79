"""Small sets of shards for the tests to write, read and spoil."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from clusterq_common.images import encode_png
from clusterq_common.shards.manifest import Generation, Manifest, Split, TeacherFacts
from clusterq_common.shards.write import Sample, SplitWriter, write_manifest
from clusterq_common.teacher.spec import InputSpec

GREY = InputSpec(size=8, channels=1, num_classes=3, mean=(0.4,), std=(0.3,))
COLOUR = InputSpec(size=16, channels=3, num_classes=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def samples(count: int, *, logits: bool = True, seed: int = 0) -> list[Sample]:
    random = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        pixels = torch.randint(256, (1, 8, 8), dtype=torch.uint8, generator=random)
        values = torch.randn(3, generator=random).half().numpy() if logits else None
        made.append(Sample(pixels, encode_png(pixels), number % 3, seed, number // 3, number % 3, 0.9, values))
    return made


def manifest_of(splits: dict[str, Split], *, logits: bool = True) -> Manifest:
    return Manifest(
        created_by="clusterq test",
        teacher=TeacherFacts(arch="resnet20_cifar10", is_factory=False, digest="sha256:" + "0" * 64, spec=GREY),
        generation=Generation(
            method="gdfq",
            settings={"lr": 0.1},
            seed=0,
            attempts=[4, 4, 4],
            candidates=12,
            rejected=[0, 0, 0],
            teacher_agreement=1.0,
            mean_confidence=0.9,
            clipped=0.0,
            keep_misclassified=False,
            chunk=64,
        ),
        splits=splits,
        has_logits=logits,
        versions={},
    )


def write_set(folder: Path, count: int = 12, *, logits: bool = True) -> list[Sample]:
    made = samples(count, logits=logits)
    with SplitWriter(folder, "train", samples_per_shard=5) as writer:
        for sample in made:
            writer.write(sample)
    per_class = [sum(sample.label == label for sample in made) for label in range(3)]
    write_manifest(
        folder, manifest_of({"train": Split(samples=count, per_class=per_class, shards=writer.shards)}, logits=logits)
    )
    return made


def edit_manifest(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
