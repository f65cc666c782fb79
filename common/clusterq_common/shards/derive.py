"""Sets made from other sets: merge, subset and repair. The manifest records the origin of the images."""

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write, final_name
from clusterq_common.run.environment import commit, versions
from clusterq_common.run.folder_lock import only_program
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.manifest import (
    MANIFEST,
    SHARD_NAME,
    Derivation,
    Manifest,
    Parent,
    SplitName,
    format_for,
    set_digest,
)
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.sample import Sample
from clusterq_common.shards.verify import good_samples
from clusterq_common.shards.write import (
    PARENT_SIGNATURES,
    SET_FILES,
    DiskFullError,
    Written,
    index_files,
    samples_per_shard,
    shard_name,
    write_manifest,
    write_shard,
)

Advance = Callable[[int], None]

# File in an unfinished set: names of the files made for it, one a line. Each name is written before its file.
MADE = ".derivation"
LARGEST_LIST = 1 << 24


def merge(
    sets: list[ShardSet],
    out: Path,
    *,
    drop_duplicates: bool = False,
    signatures: bytes | None = None,
    advance: Advance = lambda _: None,
) -> Manifest:
    """Merge all images of several sets of one teacher into one set.

    `signatures` is the file of signatures under the sets and their parents (`sharing.signature`), as in the functions below.

    Raises:
        ClusterqError: sets of different teachers, images, normalisations or class names, the same image twice, or `out` in use.
    """
    first = sets[0].manifest
    for other in sets[1:]:
        if other.manifest.teacher.digest != first.teacher.digest:
            raise ClusterqError(
                f"shards merge: {other.folder} was made for {other.manifest.teacher.arch} ({other.manifest.teacher.digest[:19]}), "
                f"{sets[0].folder} for {first.teacher.arch} ({first.teacher.digest[:19]}); merge sets of one teacher."
            )
        ours, theirs = first.teacher.spec.model_dump(), other.manifest.teacher.spec.model_dump()
        differing = next((name for name in ours if ours[name] != theirs[name]), None)
        if differing is not None:
            raise ClusterqError(
                f"shards merge: {other.folder} has {differing} {theirs[differing]}, {sets[0].folder} {ours[differing]}; merge sets whose "
                "images have one size, the same channels and one normalisation."
            )
        if other.manifest.class_names != first.class_names:
            raise ClusterqError(
                f"shards merge: {other.folder} and {sets[0].folder} name their classes differently; use equal names."
            )
    seen: dict[bytes, str] = {}

    def samples(name: SplitName) -> Iterator[Sample]:
        for shards in sets:
            if name not in shards.manifest.splits:
                continue
            split = shards.split(name)
            for number in range(len(split)):
                sample = split.read_sample(number)
                here = f"{split.key(number)} of {shards.folder / split.shard(number)}"
                # Also across splits: a training image must not be held out.
                if sample.content in seen:
                    if drop_duplicates:
                        continue
                    raise ClusterqError(
                        f"shards merge: sample {here} is the same image as {seen[sample.content]}; leave one of the sets out, or use "
                        f"{setting_name('drop_duplicates')}."
                    )
                seen[sample.content] = here
                yield sample

    names: list[SplitName] = [name for name in ("train", "heldout") if any(name in shards.manifest.splits for shards in sets)]
    settings = {"drop_duplicates": drop_duplicates}
    with _new_set(out):
        return _write(sets, out, {name: samples(name) for name in names}, "merge", settings, signatures, advance)


def subset(
    source: ShardSet,
    out: Path,
    *,
    classes: list[int] | None = None,
    per_class: int | None = None,
    min_confidence: float = 0.0,
    signatures: bytes | None = None,
    advance: Advance = lambda _: None,
) -> Manifest:
    """Write a subset: the first images of some classes, up to a number of each, above a confidence of the teacher.

    The teacher keeps all its classes; those left out have no images. `per_class` bounds the training split; the held-out one
    is bounded in proportion.

    Raises:
        ClusterqError: a class that the teacher does not have, nothing left, or `out` in use.
    """
    manifest = source.manifest
    known = manifest.teacher.spec.num_classes
    strange = [label for label in classes or [] if not 0 <= label < known]
    if strange:
        raise ClusterqError(
            f"shards subset: {setting_name('classes')} names class {strange[0]}, the teacher has classes 0 to {known - 1}."
        )
    wanted = set(range(known) if classes is None else classes)

    def samples(name: SplitName) -> Iterator[Sample]:
        split = source.split(name)
        share = len(split) / max(1, manifest.splits["train"].samples)
        most = None if per_class is None else max(1, round(per_class * share)) if name != "train" else per_class
        taken = [0] * known
        for number in range(len(split)):
            label = split.label(number)
            if label not in wanted or (most is not None and taken[label] >= most):
                continue
            if min_confidence and split.facts(number).teacher_confidence < min_confidence:
                continue
            taken[label] += 1
            yield split.read_sample(number)

    settings = {"classes": classes, "per_class": per_class, "min_confidence": min_confidence}
    with _new_set(out):
        return _write([source], out, {name: samples(name) for name in manifest.splits}, "subset", settings, signatures, advance)


def repair(
    folder: Path, manifest: Manifest, out: Path, *, signatures: bytes | None = None, advance: Advance = lambda _: None
) -> Manifest:
    """Write everything that can still be read of a damaged set as a new set.

    Raises:
        ClusterqError: nothing can be read, or `out` is in use.
    """
    parts = {name: good_samples(folder, manifest, name) for name in manifest.splits}
    with _new_set(out):
        return _write([ShardSet(folder, manifest)], out, parts, "repair", {}, signatures, advance)


@contextmanager
def _new_set(out: Path) -> Iterator[None]:
    """Reserve a folder for a new set while the block writes it. If the block fails, its files are removed.

    Raises:
        ClusterqError: another program writes there, it holds other files, or the disk is full.
    """
    with only_program(out):
        _remove_unfinished(out)
        if any(out.iterdir()):
            raise ClusterqError(f"{out} is not empty, expected a new or empty folder; choose another one.", setting="out")
        try:
            yield
        except BaseException as error:  # an interruption too; it goes on its way below
            # A folder without a manifest is no set, and would block the next try.
            _remove_unfinished(out)
            if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}):
                raise ClusterqError(
                    f"the disk of {out} is full, and the unfinished set was removed; free some space and run the same command "
                    f"again, or choose another {setting_name('out')}.",
                    setting="out",
                ) from error
            raise
        (out / MADE).unlink(missing_ok=True)


def _write(
    sets: list[ShardSet],
    out: Path,
    parts: dict[SplitName, Iterator[Sample]],
    operation: str,
    settings: dict[str, Any],
    signatures: bytes | None,
    advance: Advance,
) -> Manifest:
    first = sets[0].manifest
    has_logits = all(shards.manifest.has_logits for shards in sets)
    splits = {}
    confidence = 0.0
    for name, samples in parts.items():
        written = _write_split(out, name, _counted(samples, advance), first, keep_logits=has_logits)
        confidence += written.confidence
        if written.shards:
            splits[name] = written.split()
    if "train" not in splits:
        raise ClusterqError(f"shards {operation}: no training image is left; ask for more classes, images or confidence less.")
    total = sum(split.samples for split in splits.values())
    counts = [sum(split.samples for split in shards.manifest.splits.values()) for shards in sets]
    clipped = sum(shards.manifest.pixels.clipped * count for shards, count in zip(sets, counts, strict=True)) / sum(counts)
    notes = sorted({shards.manifest.note for shards in sets if shards.manifest.note})
    licences = {shards.manifest.license for shards in sets}
    manifest = Manifest(
        format=format_for(first.teacher.spec),
        digest=set_digest(splits),
        created_by=f"clusterq {version('clusterq')}",
        commit=commit(),
        teacher=first.teacher,
        class_names=first.class_names,
        pixels=first.pixels.model_copy(update={"clipped": clipped}),
        has_logits=has_logits,
        mean_confidence=min(1.0, confidence / total),
        derivation=Derivation.model_validate(
            {"operation": operation, "inputs": [shards.manifest.digest for shards in sets], "settings": settings}
        ),
        parents=_parents(sets),
        splits=splits,
        # If licences differ, this program cannot decide which one applies.
        license=licences.pop() if len(licences) == 1 else None,
        note="\n\n".join(notes) or None,
        versions=versions(),
    )
    for file in index_files(manifest):
        _will_make(out, file)
    if signatures is not None:
        _will_make(out, PARENT_SIGNATURES)
        atomic_write(out / PARENT_SIGNATURES, signatures)
    return write_manifest(out, manifest)


def _write_split(out: Path, name: SplitName, samples: Iterator[Sample], first: Manifest, *, keep_logits: bool) -> Written:
    classes, per_shard = first.teacher.spec.num_classes, samples_per_shard(first.teacher.spec)
    whole = Written.nothing(classes)
    number = 0
    while True:
        part = islice(samples, per_shard)
        fitting: Iterable[Sample] = part if keep_logits else (replace(sample, logits=None) for sample in part)
        _will_make(out, shard_name(name, number))
        written = write_shard(out, shard_name(name, number), fitting, start_key=number * per_shard, num_classes=classes)
        if not written.shards:
            return whole
        whole.add(written)
        number += 1


def _will_make(out: Path, name: str) -> None:
    """Note a file of this set before it is made, so that the next process can attribute it, however this one ends."""
    with (out / MADE).open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")


def _remove_unfinished(out: Path) -> None:
    """Remove what an unfinished derivation made in a folder, and nothing else. A set with its manifest is finished."""
    note = out / MADE
    if (out / MANIFEST).exists() or note.is_symlink() or not note.is_file() or note.stat().st_size > LARGEST_LIST:
        return
    listed = note.read_text(encoding="utf-8", errors="replace").splitlines()
    # The list may come from a stranger, so only names of a set's own files are followed.
    ours = {name for name in listed if SHARD_NAME.fullmatch(name) or name in SET_FILES}
    for path in out.iterdir():
        if final_name(path.name) in ours:
            path.unlink()
    note.unlink()


def _counted(samples: Iterator[Sample], advance: Advance) -> Iterator[Sample]:
    for sample in samples:
        advance(1)
        yield sample


def _parents(sets: list[ShardSet]) -> list[Parent]:
    """Return the sets and their parents, each once."""
    parents: dict[str, Parent] = {}
    for shards in sets:
        manifest = shards.manifest
        own = Parent(
            digest=manifest.digest,
            created_by=manifest.created_by,
            samples=sum(split.samples for split in manifest.splits.values()),
            generation=manifest.generation,
            derivation=manifest.derivation,
        )
        for parent in [own, *manifest.parents]:
            parents.setdefault(parent.digest, parent)
    return list(parents.values())
