"""From a source of candidate images to a folder of class-labelled shards."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from clusterq_common.runtime.environment import versions
from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.files import PARTIAL_SUFFIX
from clusterq_common.runtime.progress import say
from clusterq_common.shards.manifest import (
    MANIFEST,
    SHARD_NAME,
    Generation,
    Manifest,
    Split,
    SplitName,
    TeacherFacts,
    read_manifest,
)
from clusterq_common.shards.write import SplitWriter, write_manifest
from clusterq_common.teacher.factory import is_factory
from clusterq_common.teacher.load import Teacher
from clusterq_gen.candidates import CHUNK, Emitter, Tally
from clusterq_gen.config import GenConfig
from clusterq_gen.source import Source

OTHER_FILES = (MANIFEST, "README.md", "_info.json", "wids-train.json", "wids-heldout.json")


def emit_shards(
    config: GenConfig, teacher: Teacher, source: Source, folder: Path, *, seed: int, overwrite: bool = False
) -> Manifest:
    """Write shards, or add to a set that this source began: candidates go on where they ended.

    Raises:
        ClusterqError: the folder holds something else, or a set of other settings; none of the candidates was accepted.
    """
    before = _set_to_extend(config, teacher, folder, seed, overwrite=overwrite)
    classes = teacher.spec.num_classes
    wanted: dict[SplitName, int] = {"train": config.emit.per_class, "heldout": config.emit.heldout}
    old: dict[SplitName, Split] = dict(before.splits) if before else {}
    tally = Tally.fresh(classes, before.generation.attempts if before else None)
    emitter = Emitter(
        source,
        teacher,
        seed=seed,
        keep_misclassified=config.emit.keep_misclassified,
        store_logits=config.emit.store_logits,
    )
    splits: dict[SplitName, Split] = {}
    for name, count in wanted.items():
        have = old[name] if name in old else Split(samples=0, per_class=[0] * classes, shards=[])
        missing = [max(0, count - already) for already in have.per_class]
        tally.written = [0] * classes
        with SplitWriter(folder, name, start_key=have.samples, start_shard=len(have.shards)) as writer:
            emitter.emit(missing, tally, writer.write, f"writing {name} images")
        if have.samples or any(tally.written):
            splits[name] = Split(
                samples=have.samples + sum(tally.written),
                per_class=[a + b for a, b in zip(have.per_class, tally.written, strict=True)],
                shards=[*have.shards, *writer.shards],
            )
        if "train" not in splits:
            raise ClusterqError(
                f"the teacher agreed with none of {tally.candidates} generated images, expected some for the shards; train longer "
                "(--epochs), or keep what it takes for other classes with --keep-misclassified."
            )
    if before is not None and not tally.candidates:
        say(f"{folder} holds that many images already; nothing to add")
        return before
    manifest = Manifest(
        created_by=f"clusterq {version('clusterq')}",
        teacher=TeacherFacts(
            arch=_shown_arch(config.teacher.arch),
            is_factory=is_factory(config.teacher.arch),
            digest=teacher.digest,
            spec=teacher.spec,
        ),
        generation=_generation(config, tally, before, seed),
        splits=splits,
        has_logits=config.emit.store_logits,
        versions=versions(),
    )
    write_manifest(folder, manifest)
    return manifest


def _set_to_extend(config: GenConfig, teacher: Teacher, folder: Path, seed: int, *, overwrite: bool) -> Manifest | None:
    """The set that is there, if this emission can go on with it. Leftovers of an interrupted emission are removed."""
    if not folder.is_dir():
        return None
    if overwrite or not (folder / MANIFEST).is_file():
        for path in folder.iterdir():
            if SHARD_NAME.fullmatch(path.name.removesuffix(PARTIAL_SUFFIX)) or path.name in OTHER_FILES:
                path.unlink()
        if any(folder.iterdir()):
            raise ClusterqError(
                f"--out: {folder} holds files that are no shards, expected a new folder or a set of shards; choose another folder."
            )
        return None
    manifest = read_manifest(folder)
    same = {
        "teacher": manifest.teacher.digest == teacher.digest,
        "generator run": manifest.generation.settings == _settings(config),
        "--seed": manifest.generation.seed == seed,
        "--keep-misclassified": manifest.generation.keep_misclassified == config.emit.keep_misclassified,
        "--logits": manifest.has_logits == config.emit.store_logits,
    }
    other = [name for name, equal in same.items() if not equal]
    if other:
        raise ClusterqError(
            f"{folder} holds shards of another {other[0]}, to which nothing can be added; use --overwrite to replace them, or "
            "write to a folder of their own with --out."
        )
    listed = {shard.file for split in manifest.splits.values() for shard in split.shards}
    for path in folder.iterdir():
        # Shards beyond the manifest are what an interrupted extension left.
        if SHARD_NAME.fullmatch(path.name.removesuffix(PARTIAL_SUFFIX)) and path.name not in listed:
            path.unlink()
    return manifest


def _settings(config: GenConfig) -> dict[str, Any]:
    """The hyperparameters that made the generator, for the manifest; paths of this machine stay out of it."""
    values = config.model_dump(mode="json")
    sections = ("preset", "method", "quant", "generator", "train")
    return {**{section: values[section] for section in sections}, "seed": values["runtime"]["seed"]}


def _generation(config: GenConfig, tally: Tally, before: Manifest | None, seed: int) -> Generation:
    """Counts of this emission and of the ones it extends, together."""
    earlier = before.generation if before else None
    drawn_before = earlier.candidates if earlier else 0
    written_before = sum(split.samples for split in before.splits.values()) if before else 0
    drawn = drawn_before + tally.candidates

    def share(new_sum: float, old_share: float) -> float:
        return min(1.0, (new_sum + old_share * drawn_before) / drawn)

    confidence = tally.confidence + (earlier.mean_confidence * written_before if earlier else 0.0)
    return Generation(
        method=config.method.method,
        settings=_settings(config),
        seed=seed,
        attempts=tally.attempts,
        candidates=drawn,
        rejected=[
            a + b for a, b in zip(tally.rejected, earlier.rejected if earlier else [0] * len(tally.rejected), strict=True)
        ],
        teacher_agreement=share(tally.agreed, earlier.teacher_agreement if earlier else 0.0),
        mean_confidence=min(1.0, confidence / (written_before + tally.total_written)),
        clipped=share(tally.clipped, earlier.clipped if earlier else 0.0),
        keep_misclassified=config.emit.keep_misclassified,
        chunk=CHUNK,
    )


def _shown_arch(arch: str) -> str:
    """A factory as `file.py:function`: the rest of its path is nobody's business."""
    return Path(arch.rpartition(":")[0]).name + ":" + arch.rpartition(":")[2] if is_factory(arch) else arch
