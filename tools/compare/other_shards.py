"""Shards without a generator, for comparison: pure noise as lower and real images as upper bound."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from clusterq_common.images import png
from clusterq_common.images.normalise import normalise, pixel_bounds, to_array, to_pixels
from clusterq_common.run.environment import versions
from clusterq_common.run.seeding import stream
from clusterq_common.shards.digest import sample_digest
from clusterq_common.shards.facts import teacher_facts
from clusterq_common.shards.manifest import Generation, Manifest, Pixels, SplitName, format_for, set_digest
from clusterq_common.shards.sample import Sample
from clusterq_common.shards.write import Written, shard_name, write_manifest, write_shard
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.data.real import open_validation

BATCH = 100
# Every eleventh image is held out, the same share as in the generator's sets.
HELDOUT_EVERY = 11


def write_noise(folder: Path, teacher: Teacher, count: int, seed: int) -> None:
    """Write standard normal noise in the teacher's normalisation, labelled with the teacher's top-1."""

    def batches() -> Iterator[tuple[Tensor, None]]:
        low, high = pixel_bounds(teacher.spec)
        shape = teacher.spec.shape
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            images = torch.randn(size, *shape, generator=stream(seed, "pure noise", start))
            yield to_pixels(images.clamp(low, high), teacher.spec), None

    _write(folder, teacher, batches(), "noise", seed)


def write_real(folder: Path, teacher: Teacher, images: Path, per_class: int, seed: int) -> None:
    """Write real images with their own labels, the first `per_class` of each class: an upper bound that is not data-free."""
    source = open_validation(images, teacher.spec)
    seen = [0] * teacher.spec.num_classes
    chosen = []
    for index, label in enumerate(source.labels):
        seen[label] += 1
        if seen[label] <= per_class:
            chosen.append(index)

    def batches() -> Iterator[tuple[Tensor, list[int]]]:
        for start in range(0, len(chosen), BATCH):
            batch = source.collate([source.sample(index) for index in chosen[start : start + BATCH]])
            if len(batch.labels):
                yield batch.pixels, batch.labels.tolist()

    _write(folder, teacher, batches(), "real", seed)


@torch.no_grad()
def _samples(teacher: Teacher, batches: Iterable[tuple[Tensor, list[int] | None]], seed: int) -> Iterator[Sample]:
    device = next(teacher.model.parameters()).device
    for pixels, given in batches:
        images = normalise(pixels.to(device), teacher.spec).contiguous(memory_format=torch.channels_last)
        logits = teacher.model(images).float().cpu()
        confidence, top1 = logits.softmax(1).max(1)
        labels = top1.tolist() if given is None else given
        for number, label in enumerate(labels):
            yield Sample(
                png=png.encode(to_array(pixels[number])),
                content=sample_digest(label, to_array(pixels[number])),
                label=label,
                asked=label,
                seed=seed,
                attempt=0,
                teacher_top1=int(top1[number]),
                teacher_confidence=float(confidence[number]),
                logits=logits[number].half().numpy(),
            )


def _write(folder: Path, teacher: Teacher, batches: Iterable[tuple[Tensor, list[int] | None]], method: str, seed: int) -> None:
    classes = teacher.spec.num_classes
    samples = list(_samples(teacher, batches, seed))
    # Shuffled, so that both splits contain every class.
    order = torch.randperm(len(samples), generator=stream(seed, "split")).tolist()
    parts: dict[SplitName, list[Sample]] = {"train": [], "heldout": []}
    for place, index in enumerate(order):
        parts["heldout" if place % HELDOUT_EVERY == 0 else "train"].append(samples[index])
    written: dict[SplitName, Written] = {}
    for name, part in parts.items():
        written[name] = write_shard(folder, shard_name(name, 0), part, start_key=0, num_classes=classes)
    splits = {name: part.split() for name, part in written.items() if part.shards}
    agreed = sum(sample.label == sample.teacher_top1 for sample in samples)
    manifest = Manifest(
        format=format_for(teacher.spec),
        digest=set_digest(splits),
        created_by="clusterq tools/compare_methods.py",
        commit=None,
        teacher=teacher_facts(teacher),
        pixels=Pixels(clipped=0.0),
        has_logits=True,
        mean_confidence=sum(sample.teacher_confidence for sample in samples) / len(samples),
        generation=Generation(
            method=method,
            settings={},
            source=f"sha256:{'0' * 64}",
            seed=seed,
            rounds=[{name: split.samples for name, split in splits.items()}],
            candidates=len(samples),
            rejected=[0] * classes,
            teacher_agreement=agreed / len(samples),
            labels="teacher" if method == "noise" else "asked",
            keep_misclassified=True,
            chunk=BATCH,
            samples_per_shard=max(1, len(samples)),
            device="cpu",
            threads=torch.get_num_threads(),
        ),
        splits=splits,
        versions=versions(),
    )
    write_manifest(folder, manifest)
