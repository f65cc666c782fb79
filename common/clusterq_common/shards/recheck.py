"""Comparison of a set's labels and logits with the teacher's present ones."""

from collections.abc import Iterator

import torch
from torch import Tensor

from clusterq_common.images.normalise import normalise
from clusterq_common.shards.manifest import SplitName
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.verify import Problem
from clusterq_common.teacher.load import Teacher

# Stored logits are rounded to float16 (relative 5e-4); float32 convolutions differ between machines by less than that.
ABSOLUTE_TOLERANCE = 0.02
RELATIVE_TOLERANCE = 2e-3
BATCH = 64


def logits_tolerance(logits: Tensor) -> Tensor:
    """Return the allowed distance of stored logits, (N, classes) -> (N,): 0.02 + 0.002 of an image's largest."""
    return ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * logits.abs().amax(1)


@torch.no_grad()
def recheck(shards: ShardSet, split: SplitName, teacher: Teacher, count: int) -> Iterator[Problem]:
    """Return the problems of `count` samples spread evenly over a split: other labels, top-1 or logits than the teacher's.

    Logits agree within `logits_tolerance`. Samples have to be readable: `verify_set` comes first.
    """
    reader = shards.split(split)
    device = next(teacher.model.parameters()).device
    made = shards.manifest.generation
    keep = made is not None and not made.keep_misclassified
    chosen = torch.linspace(0, len(reader) - 1, min(count, len(reader))).round().long().unique().tolist()
    for start in range(0, len(chosen), BATCH):
        numbers = chosen[start : start + BATCH]
        read = [reader.read(number) for number in numbers]
        pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _, _ in read]).to(device)
        images = normalise(pixels, teacher.spec).contiguous(memory_format=torch.channels_last)
        logits = teacher.model(images).float().cpu()
        for number, (_, label, stored), now, tolerance in zip(
            numbers, read, logits, logits_tolerance(logits).tolist(), strict=True
        ):
            file, key, top1 = reader.shard(number), reader.key(number), int(now.argmax())
            # If two classes are closer than the tolerance, rounding may decide between them.
            clear = float(now.max() - now[label]) > 2 * tolerance
            if keep and top1 != label and clear:
                yield Problem(file, key, f"its label is {label}, the teacher says {top1}")
            if (
                reader.facts(number).teacher_top1 != top1
                and float(now.max() - now[reader.facts(number).teacher_top1]) > 2 * tolerance
            ):
                yield Problem(
                    file, key, f"its .json gives {reader.facts(number).teacher_top1} as the teacher's top-1, which says {top1}"
                )
            if stored is not None:
                off = float((torch.from_numpy(stored).float() - now).abs().max())
                if off > tolerance:
                    yield Problem(file, key, f"its logits are {off:.3g} off the teacher's, more than {tolerance:.2g}")
