"""Manifest of a set of shards, built from the written files and the counts."""

from pathlib import Path
from typing import Any

import torch

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import warn
from clusterq_common.quantities import count
from clusterq_common.run.environment import commit, device_name, versions
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.facts import teacher_facts
from clusterq_common.shards.manifest import Generation, Manifest, Pixels, SplitName, format_for, set_digest
from clusterq_common.shards.write import Written, samples_per_shard
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import shown_arch
from clusterq_gen.bank.config import is_bank
from clusterq_gen.config import EmitConfig, GenConfig
from clusterq_gen.emission.candidate_source import CandidateSource
from clusterq_gen.emission.candidates import CHUNK, EmissionCounts
from clusterq_gen.emission.shard_plan import ShardPlan
from clusterq_gen.resume import labelled_by_teacher, run_settings

SHOWN_CLASSES = 8


def how_made(
    config: GenConfig, teacher: Teacher, source: CandidateSource, seed: int, before: Manifest | None
) -> dict[str, Any]:
    """Return everything that the bytes of a shard depend on, apart from its plan."""
    earlier = before.generation if before else None
    return {
        "method": shown_arch(config.method.method),
        "settings": run_settings(config),
        "source": source.digest,
        "seed": seed,
        "labels": "teacher" if labelled_by_teacher(config) else "asked",
        "keep_misclassified": config.emit.keep_misclassified,
        "chunk": CHUNK,
        "samples_per_shard": earlier.samples_per_shard
        if earlier
        else config.emit.samples_per_shard or samples_per_shard(teacher.spec),
        "device": device_name(next(teacher.model.parameters()).device),
        "threads": torch.get_num_threads(),
    }


def gather(
    folder: Path, num_classes: int, made: list[tuple[ShardPlan, Written, EmissionCounts]], before: Manifest | None
) -> tuple[dict[SplitName, Written], EmissionCounts]:
    """Return the contents of the splits, old and new shards together, and the counts of the new shards.

    Raises:
        ClusterqError: a damaged shard, made again, holds other images than before.
    """
    parts: dict[SplitName, Written] = {"train": Written.nothing(num_classes), "heldout": Written.nothing(num_classes)}
    tally = EmissionCounts.nothing(num_classes)
    mended = {}
    listed = {shard.file: shard for split in before.splits.values() for shard in split.shards} if before else {}
    for plan, written, counts in made:
        if plan.name not in listed:
            parts[plan.split].add(written)
            tally.add(counts)
            continue
        # It was counted when it was first made. Its bytes may differ, from another PNG encoder; its images may not.
        if [shard.content for shard in written.shards] != [listed[plan.name].content]:
            raise ClusterqError(
                f"{folder / plan.name} was damaged, and made anew it holds other images (other versions or threads than the "
                f"manifest states?); replace the whole set with {setting_name('overwrite')}."
            )
        mended[plan.name] = written.shards[0]
    for name, split in before.splits.items() if before else ():
        shards = [mended.get(shard.file, shard) for shard in split.shards]
        parts[name].add(Written(split.per_class, shards))
        parts[name].shards.sort(key=lambda shard: shard.file)
    return parts, tally


def describe_set(
    config: GenConfig,
    teacher: Teacher,
    generation: dict[str, Any],
    class_names: list[str] | None,
    parts: dict[SplitName, Written],
    tally: EmissionCounts,
    before: Manifest | None,
) -> Manifest:
    """Return the manifest. Its counts cover this emission and those that it extends.

    Raises:
        ClusterqError: there is no training image.
    """
    splits = {name: part.split() for name, part in parts.items() if part.shards}
    if "train" not in splits:
        raise ClusterqError(
            f"the teacher agreed with none of {tally.candidates} generated images, expected some for the shards; train longer "
            f"({setting_name('bank_steps' if is_bank(config.method.method) else 'epochs')}), or keep what it takes for other classes with "
            f"{setting_name('keep_misclassified')}."
        )
    warn_of_short_classes(tally.short)
    earlier = before.generation if before else None
    drawn_before = earlier.candidates if earlier else 0
    drawn = drawn_before + tally.candidates
    count_before = sum(split.samples for split in before.splits.values()) if before else 0
    confidence = sum(part.confidence for part in parts.values()) + (before.mean_confidence * count_before if before else 0.0)

    def share(new_sum: float, old_share: float) -> float:
        return min(1.0, (new_sum + old_share * drawn_before) / drawn)

    rejected_before = earlier.rejected if earlier else [0] * len(tally.rejected)
    return Manifest(
        format=format_for(teacher.spec),
        digest=set_digest(splits),
        created_by=f"clusterq {versions()['clusterq']}",
        commit=commit(),
        teacher=teacher_facts(teacher),
        # Earlier metadata stays valid unless new values are given.
        class_names=class_names or (before.class_names if before else None),
        license=config.emit.license or (before.license if before else None),
        note=config.emit.note or (before.note if before else None),
        pixels=Pixels(clipped=share(tally.clipped, before.pixels.clipped if before else 0.0)),
        has_logits=config.emit.store_logits,
        mean_confidence=min(1.0, confidence / sum(split.samples for split in splits.values())),
        generation=Generation(
            **generation,
            candidates=drawn,
            rejected=[a + b for a, b in zip(tally.rejected, rejected_before, strict=True)],
            teacher_agreement=share(tally.agreed, earlier.teacher_agreement if earlier else 0.0),
        ),
        splits=splits,
        versions=versions(),
    )


def rounds_of(emit: EmitConfig, num_classes: int, before: Manifest | None) -> list[dict[SplitName, int]]:
    """Return the images requested so far and now, by round and split. A set never shrinks."""
    earlier = list(before.generation.rounds) if before and before.generation else []
    wanted = emit.wanted(num_classes)
    last = earlier[-1] if earlier else {}
    wanted = {name: max(count, last.get(name, 0)) for name, count in wanted.items()}
    return earlier if wanted == last else [*earlier, wanted]


def read_class_names(emit: EmitConfig, classes: int) -> list[str] | None:
    """Read the names by class index; None where no file was named.

    Raises:
        ClusterqError: there is no such file, it is no text, or it has another number of names than there are classes.
    """
    if emit.class_names is None:
        return None
    path = Path(emit.class_names)
    if not path.is_file():
        raise ClusterqError(
            f"{path} does not exist, expected a file with one class name a line, in index order.", setting="class_names"
        )
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ClusterqError(
            f"{path} is no text in UTF-8, expected one class name a line; save it as UTF-8.", setting="class_names"
        ) from error
    if len(names) != classes:
        raise ClusterqError(f"{path} holds {len(names)} names, expected {classes}, one for each class.", setting="class_names")
    return names


def warn_of_short_classes(short: list[int]) -> None:
    classes = [(label, missing) for label, missing in enumerate(short) if missing]
    if classes:
        shown = ", ".join(f"{label} ({missing} missing)" for label, missing in classes[:SHOWN_CLASSES])
        more = " ..." if classes[SHOWN_CLASSES:] else ""
        warn(f"{count(len(classes), 'class', 'classes')} got fewer images than wanted: {shown}{more}")
