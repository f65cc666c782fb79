"""From a source of candidate images to a folder of class-labelled shards."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from clusterq_common.runtime.distributed import Ranks
from clusterq_common.runtime.environment import commit, device_name, versions
from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.files import PARTIAL_SUFFIX, sha256_file
from clusterq_common.runtime.progress import progress, say
from clusterq_common.shards.manifest import (
    MANIFEST,
    SHARD_NAME,
    Generation,
    Manifest,
    Pixels,
    Shard,
    Split,
    SplitName,
    TeacherFacts,
    read_manifest,
    set_digest,
)
from clusterq_common.shards.write import Written, samples_per_shard, write_manifest, write_shard
from clusterq_common.taps import batchnorm_layers
from clusterq_common.teacher.factory import is_factory, shown_arch
from clusterq_common.teacher.load import Teacher
from clusterq_gen.blocks import Block, plan_blocks
from clusterq_gen.candidates import CHUNK, Emitter, Tally
from clusterq_gen.config import EmitConfig, GenConfig
from clusterq_gen.journal import JOURNAL, Journal
from clusterq_gen.source import Source

OTHER_FILES = (MANIFEST, "README.md", "_info.json", "wids-train.json", "wids-heldout.json")
SHOWN_CLASSES = 8


def emit_shards(
    config: GenConfig,
    teacher: Teacher,
    source: Source,
    folder: Path,
    *,
    seed: int,
    overwrite: bool = False,
    ranks: Ranks = Ranks(),  # noqa: B008  # immutable
) -> Manifest:
    """Write a set of shards, add to the one that is there, or mend it: finished shards that verify are kept.

    Under torchrun every process calls this; each writes its share of the shards, the first one the manifest.

    Raises:
        ClusterqError: the folder holds something else, or a set of other settings; none of the candidates was accepted; the
            disk is full.
    """
    class_names = _class_names(config.emit, teacher.spec.num_classes)
    before = _set_to_extend(config, teacher, source, folder, seed, overwrite=overwrite, ranks=ranks)
    generation = _generation(config, teacher, source, seed, before)
    rounds = _rounds(config.emit, before)
    blocks = plan_blocks(rounds, teacher.spec.num_classes, generation["samples_per_shard"])
    listed = {shard.file: shard for split in before.splits.values() for shard in split.shards} if before else {}
    emptied = _listed_before(before, blocks, teacher.spec.num_classes, generation["samples_per_shard"])
    todo = [block for block in blocks if not _whole(folder, block, listed, emptied)]
    if before is not None and not todo:
        say(f"{folder} holds that many images already, and its shards are whole; nothing to do")
        return before

    journal = Journal(
        folder, {**generation, "teacher": teacher.digest, "logits": config.emit.store_logits, "versions": versions()}
    )
    with _encoders(config.emit.workers) as pool:
        emitter = Emitter(
            source,
            teacher,
            seed=seed,
            keep_misclassified=config.emit.keep_misclassified,
            store_logits=config.emit.store_logits,
            pool=pool,
        )
        mine = todo[ranks.rank :: ranks.world]
        with progress("writing images", sum(sum(block.wanted) for block in mine)) as ticker:
            for block in mine:
                kept = journal.finished(block)
                if kept is not None:
                    ticker.advance(sum(kept[0].per_class))
                    continue
                tally = Tally.nothing(teacher.spec.num_classes)
                samples = emitter.samples(block, tally, ticker.advance)
                written = write_shard(
                    folder, block.name, samples, start_key=block.first_slot, num_classes=teacher.spec.num_classes
                )
                journal.note(block, written, tally)
    ranks.wait()
    if ranks.first:
        _finish(config, teacher, folder, before, generation | {"rounds": rounds}, todo, journal, listed, class_names)
    ranks.wait()
    return read_manifest(folder)


def _finish(
    config: GenConfig,
    teacher: Teacher,
    folder: Path,
    before: Manifest | None,
    generation: dict[str, Any],
    todo: list[Block],
    journal: Journal,
    listed: dict[str, Shard],
    class_names: list[str] | None,
) -> None:
    """Put together what all processes wrote, and write the manifest."""
    classes = teacher.spec.num_classes
    parts: dict[SplitName, Written] = {"train": Written.nothing(classes), "heldout": Written.nothing(classes)}
    tally = Tally.nothing(classes)
    for block in todo:
        found = journal.finished(block)
        if found is None:
            raise RuntimeError(f"{folder / block.name} was written and is not there")
        written, counts = found
        if block.name in listed:
            if written.shards[0].content != listed[block.name].content:
                raise ClusterqError(
                    f"{folder / block.name} was damaged, and made anew it holds other images (other versions or threads than the "
                    "manifest states?); replace the whole set with --overwrite."
                )
            continue  # counted when it was made first
        parts[block.split].add(written)
        tally.add(counts)
    splits: dict[SplitName, Split] = {}
    for name, part in parts.items():
        old = before.splits.get(name) if before else None
        if old is not None:
            part.add(Written(old.per_class, old.shards))
            part.shards.sort(key=lambda shard: shard.file)
        if part.shards:
            splits[name] = part.split()
    if "train" not in splits:
        raise ClusterqError(
            f"the teacher agreed with none of {tally.candidates} generated images, expected some for the shards; train longer "
            "(--epochs), or keep what it takes for other classes with --keep-misclassified."
        )
    _warn_of_short_classes(tally.short)
    earlier = before.generation if before else None
    drawn_before = earlier.candidates if earlier else 0
    drawn = drawn_before + tally.candidates
    count_before = sum(split.samples for split in before.splits.values()) if before else 0
    confidence = sum(part.confidence for part in parts.values()) + (before.mean_confidence * count_before if before else 0.0)

    def share(new_sum: float, old_share: float) -> float:
        return min(1.0, (new_sum + old_share * drawn_before) / drawn)

    rejected_before = earlier.rejected if earlier else [0] * classes
    manifest = Manifest(
        digest=set_digest(splits),
        created_by=f"clusterq {version('clusterq')}",
        commit=commit(),
        teacher=TeacherFacts(
            arch=shown_arch(config.teacher.arch),
            is_factory=is_factory(config.teacher.arch),
            digest=teacher.digest,
            parameters=sum(parameter.numel() for parameter in teacher.model.parameters()),
            batchnorm_layers=len(batchnorm_layers(teacher.model)),
            spec=teacher.spec,
        ),
        class_names=class_names,
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
        license=config.emit.license,
        note=config.emit.note,
        versions=versions(),
    )
    write_manifest(folder, manifest)
    journal.close()


def _set_to_extend(
    config: GenConfig, teacher: Teacher, source: Source, folder: Path, seed: int, *, overwrite: bool, ranks: Ranks
) -> Manifest | None:
    """The set that is there, if this emission can go on with it. Strangers to it are removed by the first process."""
    before = None
    if folder.is_dir() and (folder / MANIFEST).is_file() and not overwrite:
        before = read_manifest(folder)
        _refuse_another(config, teacher, source, folder, seed, before)
    ranks.wait()
    if folder.is_dir() and ranks.first:
        if overwrite:
            Journal(folder, {}).close()
            for path in folder.iterdir():
                if path.name in OTHER_FILES or SHARD_NAME.fullmatch(path.name.removesuffix(PARTIAL_SUFFIX)):
                    path.unlink()
        strangers = [path for path in folder.iterdir() if not _ours(path)]
        if before is None and strangers:
            raise ClusterqError(
                f"--out: {folder} holds files that are no shards ({strangers[0].name}), expected a new folder or a set of shards; "
                "choose another folder."
            )
        for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
            path.unlink()
    ranks.wait()
    return before


def _ours(path: Path) -> bool:
    name = path.name.removesuffix(PARTIAL_SUFFIX)
    return name in OTHER_FILES or name == JOURNAL or SHARD_NAME.fullmatch(name) is not None


def _refuse_another(config: GenConfig, teacher: Teacher, source: Source, folder: Path, seed: int, manifest: Manifest) -> None:
    made = manifest.generation
    same = {
        "origin (it was merged or cut out of other sets)": made is not None,
        "teacher": manifest.teacher.digest == teacher.digest,
        "generator run": made is not None and (made.settings, made.source) == (_settings(config), source.digest),
        "--seed": made is not None and made.seed == seed,
        "--keep-misclassified": made is not None and made.keep_misclassified == config.emit.keep_misclassified,
        "--logits": manifest.has_logits == config.emit.store_logits,
    }
    other = [name for name, equal in same.items() if not equal]
    if other:
        raise ClusterqError(
            f"{folder} holds shards of another {other[0]}, to which nothing can be added; use --overwrite to replace them, or "
            "write to a folder of their own with --out."
        )


def _rounds(emit: EmitConfig, before: Manifest | None) -> list[dict[SplitName, int]]:
    """What the set was asked for so far, and now; a set never shrinks."""
    earlier = list(before.generation.rounds) if before and before.generation else []
    wanted: dict[SplitName, int] = {"train": emit.per_class, "heldout": emit.heldout}
    last = earlier[-1] if earlier else {}
    wanted = {name: max(count, last.get(name, 0)) for name, count in wanted.items()}
    return earlier if wanted == last else [*earlier, wanted]


def _listed_before(before: Manifest | None, blocks: list[Block], classes: int, per_shard: int) -> set[str]:
    """Names of all shards that earlier rounds planned: one that is not listed came out empty then."""
    if before is None or before.generation is None:
        return set()
    return {block.name for block in plan_blocks(before.generation.rounds, classes, per_shard)}


def _whole(folder: Path, block: Block, listed: dict[str, Shard], planned_before: set[str]) -> bool:
    """Whether a shard needs nothing: it is listed and verifies, or it was made before and came out empty."""
    shard = listed.get(block.name)
    if shard is None:
        return block.name in planned_before
    path = folder / block.name
    return path.is_file() and path.stat().st_size == shard.bytes and sha256_file(path) == shard.sha256


def _generation(config: GenConfig, teacher: Teacher, source: Source, seed: int, before: Manifest | None) -> dict[str, Any]:
    """What the bytes of a shard depend on, apart from its block."""
    earlier = before.generation if before else None
    return {
        "method": config.method.method,
        "settings": _settings(config),
        "source": source.digest,
        "seed": seed,
        "keep_misclassified": config.emit.keep_misclassified,
        "chunk": CHUNK,
        "samples_per_shard": earlier.samples_per_shard
        if earlier
        else config.emit.samples_per_shard or samples_per_shard(teacher.spec),
        "device": device_name(next(teacher.model.parameters()).device),
        "threads": torch.get_num_threads(),
    }


def _settings(config: GenConfig) -> dict[str, Any]:
    """The hyperparameters that made the generator, for the manifest; paths of this machine stay out of it."""
    values = config.model_dump(mode="json")
    sections = ("preset", "method", "quant", "generator", "train")
    return {**{section: values[section] for section in sections}, "seed": values["runtime"]["seed"]}


def _class_names(emit: EmitConfig, classes: int) -> list[str] | None:
    if emit.class_names is None:
        return None
    path = Path(emit.class_names)
    if not path.is_file():
        raise ClusterqError(
            f"--class-names: {path} does not exist, expected a file with one class name a line, in index order."
        )
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != classes:
        raise ClusterqError(f"--class-names: {path} holds {len(names)} names, expected {classes}, one for each class.")
    return names


def _warn_of_short_classes(short: list[int]) -> None:
    classes = [(label, missing) for label, missing in enumerate(short) if missing]
    if classes:
        shown = ", ".join(f"{label} ({missing} missing)" for label, missing in classes[:SHOWN_CLASSES])
        more = " ..." if classes[SHOWN_CLASSES:] else ""
        say(f"Warning: {len(classes)} classes got fewer images than wanted: {shown}{more}")


@contextmanager
def _encoders(workers: int) -> Iterator[Executor | None]:
    """Processes that encode images; none for 0, when this one does it."""
    if not workers:
        yield None
        return
    # Not forked: this process has threads, and perhaps a GPU.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        # Ctrl-C is this process's to answer.
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
