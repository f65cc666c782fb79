"""The commands `clusterq-finetune shards ...`, once their flags are known."""

from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import progress
from clusterq_common.quantities import count, size
from clusterq_common.setting_names import setting_name
from clusterq_common.shards import derive
from clusterq_common.shards import preview as pictures
from clusterq_common.shards.manifest import GIVEN, Manifest, SplitName, read_manifest, short_classes
from clusterq_common.shards.read import ShardSet, shard_folder
from clusterq_common.shards.verify import Problem, verify_set
from clusterq_common.sharing.parents import signatures_under
from clusterq_common.teacher.spec import named_teacher

SHOWN_PROBLEMS = 50
SHOWN_ROWS = 50


def describe(manifest: Manifest) -> list[str]:
    """Return a summary as lines of text."""
    spec, teacher = manifest.teacher.spec, manifest.teacher
    lines = [
        f"set:       {manifest.digest} ({manifest.format}, {manifest.created_by})",
        f"teacher:   {teacher.arch}, {teacher.digest}",
        f"images:    {spec.channels} x {spec.height} x {spec.width}, {spec.num_classes} classes, {manifest.pixels.encoding}, "
        f"{100 * manifest.pixels.clipped:.2f} % of the values clipped",
        f"logits:    {'float16' if manifest.has_logits else 'none'}",
    ]
    for name, split in manifest.splits.items():
        stored = size(sum(shard.bytes for shard in split.shards))
        lines.append(
            f"{name + ':':<10} {split.samples} images, {min(split.per_class)} to {max(split.per_class)} in a class, "
            f"{count(len(split.shards), 'shard')}, {stored}"
        )
        short = short_classes(manifest.missing(name))
        lines += [f"           {short}"] if short else []
    made = manifest.generation
    if made is not None:
        how = "someone's own images" if made.method == GIVEN else f"{made.method}, seed {made.seed}"
        lines.append(
            f"made by:   {how}; the teacher agreed on {100 * made.teacher_agreement:.1f} % of "
            f"{made.candidates} candidates, mean confidence {100 * manifest.mean_confidence:.1f} %"
        )
    elif manifest.derivation is not None:
        lines.append(f"made by:   {manifest.derivation.operation} of {len(manifest.derivation.inputs)} sets")
        lines += [f"parent:    {parent.digest}, {parent.samples} images" for parent in manifest.parents]
    lines += [f"{name}: {text}" for name, text in (("licence", manifest.license), ("note", manifest.note)) if text]
    return lines


def verify(path: Path, arch: str | None, weights: str | None, samples: int) -> tuple[Manifest, list[Problem]]:
    """Return all problems of a set; with the teacher given, also those of its labels and logits.

    Raises:
        ClusterqError: there is no manifest, it is inconsistent, or the teacher is another one.
    """
    folder = shard_folder(path)
    manifest = read_manifest(folder)
    if weights is not None and arch is None and manifest.teacher.is_factory:
        raise ClusterqError(
            f"{setting_name('arch')} is missing: {setting_name('weights')} alone do not make a model; "
            f"pass {setting_name('arch', 'path/to/file.py:factory')} too."
        )
    total = sum(split.samples for split in manifest.splits.values())
    with progress("verifying", total, images=1) as ticker:
        problems = verify_set(folder, manifest, advance=ticker.advance)
    if problems or (arch is None and weights is None):
        return manifest, problems
    import torch

    from clusterq_common.shards.recheck import recheck
    from clusterq_finetune.teachers import find_teacher, load_checked_teacher

    teacher = load_checked_teacher(find_teacher(named_teacher(arch, weights), None, manifest), manifest, torch.device("cpu"))
    shards = ShardSet(folder, manifest)
    for name in manifest.splits:
        problems += recheck(shards, name, teacher, samples)
    return manifest, problems


def table(problems: list[Problem]) -> list[str]:
    """Return the problems, one line each; a single line if there are none."""
    if not problems:
        return ["nothing is wrong"]
    lines = [f"{problem.file:<28} {problem.key or '-':<9} {problem.what}" for problem in problems[:SHOWN_PROBLEMS]]
    more = [f"... and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
    return [f"{'file':<28} {'sample':<9} problem", *lines, *more, count(len(problems), "problem")]


def preview(path: Path, out: Path, split: SplitName, classes: list[int] | None, per_class: int) -> int:
    """Draw a contact sheet.

    Raises:
        ClusterqError: no usable set there, or a class that the teacher does not have.
    """
    shards = ShardSet.open(path)
    known = shards.manifest.teacher.spec.num_classes
    chosen = list(range(min(known, SHOWN_ROWS))) if classes is None else classes
    if chosen and chosen[-1] >= known:
        raise ClusterqError(f"found class {chosen[-1]}, expected at most {known - 1}; correct it.", setting="classes")
    return pictures.preview(shards, split, chosen, per_class, out)


def merge(paths: list[Path], out: Path, *, drop_duplicates: bool) -> Manifest:
    """See `derive.merge`.

    Raises:
        ClusterqError: fewer than two sets, or see there.
    """
    if len(paths) < 2:
        raise ClusterqError("shards merge: found one set, expected two or more; name them all.")
    sets = [ShardSet.open(path) for path in paths]
    total = sum(split.samples for shards in sets for split in shards.manifest.splits.values())
    with progress("merging", total, images=1) as ticker:
        return derive.merge(
            sets, out, drop_duplicates=drop_duplicates, signatures=signatures_under(sets), advance=ticker.advance
        )


def subset(path: Path, out: Path, *, classes: list[int] | None, per_class: int | None, min_confidence: float) -> Manifest:
    """See `derive.subset`."""
    shards = ShardSet.open(path)
    with progress("cutting", sum(split.samples for split in shards.manifest.splits.values()), images=1) as ticker:
        return derive.subset(
            shards,
            out,
            classes=classes,
            per_class=per_class,
            min_confidence=min_confidence,
            signatures=signatures_under([shards]),
            advance=ticker.advance,
        )


def repair(path: Path, out: Path) -> Manifest:
    """See `derive.repair`."""
    folder = shard_folder(path)
    manifest = read_manifest(folder)
    with progress("repairing", sum(split.samples for split in manifest.splits.values()), images=1) as ticker:
        signatures = signatures_under([ShardSet(folder, manifest)])
        return derive.repair(folder, manifest, out, signatures=signatures, advance=ticker.advance)
