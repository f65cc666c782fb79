"""Content of a folder before an emission: a set to go on with, leftovers of an interruption, or something else."""

from pathlib import Path
from typing import Any

from clusterq_common.device.distributed import Ranks
from clusterq_common.errors import ClusterqError
from clusterq_common.files import PARTIAL_SUFFIX, final_name, sha256_file
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.manifest import MANIFEST, SHARD_NAME, Manifest, Shard, read_manifest
from clusterq_common.shards.write import SET_FILES
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import shown_arch
from clusterq_gen.bank.config import SHARED, is_bank
from clusterq_gen.config import SECTIONS, GenConfig
from clusterq_gen.emission.candidate_source import CandidateSource
from clusterq_gen.emission.journal import JOURNAL, Journal
from clusterq_gen.emission.shard_plan import ShardPlan, plan_shards

REFINE = "refine"


def set_to_extend(
    config: GenConfig, teacher: Teacher, source: CandidateSource, folder: Path, seed: int, *, overwrite: bool, ranks: Ranks
) -> Manifest | None:
    """Return the set in a folder that this emission can extend; None if there is none. Unfinished files are removed.

    Raises:
        ClusterqError: the set there cannot be extended, or the folder holds foreign files beside no set that is kept. Nothing is removed.
    """
    before = None
    if folder.is_dir() and (folder / MANIFEST).is_file() and not overwrite:
        before = read_manifest(folder)
        _refuse_another(config, teacher, source, folder, seed, before)
    ranks.wait()
    if folder.is_dir() and ranks.first:
        foreign_files = [path for path in folder.iterdir() if not _belongs_to_set(path)]
        if before is None and foreign_files:
            raise ClusterqError(
                f"{folder} holds files that are no shards ({foreign_files[0].name}), expected a new folder or a set of shards; "
                "choose another folder.",
                setting="out",
            )
        if overwrite:
            Journal(folder, {}).close()
            for path in folder.iterdir():
                if path.name in SET_FILES or SHARD_NAME.fullmatch(final_name(path.name)):
                    path.unlink()
        for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
            if path.is_symlink() or path.is_file():
                path.unlink()
    ranks.wait()
    return before


def _belongs_to_set(path: Path) -> bool:
    name = final_name(path.name)
    return name in SET_FILES or name == JOURNAL or SHARD_NAME.fullmatch(name) is not None


def _refuse_another(
    config: GenConfig, teacher: Teacher, source: CandidateSource, folder: Path, seed: int, manifest: Manifest
) -> None:
    made, settings = manifest.generation, run_settings(config)
    same = {
        "origin (it was merged or cut out of other sets)": made is not None,
        "teacher": manifest.teacher.digest == teacher.digest,
        "training run": made is not None and (_of_run(made.settings), made.source) == (_of_run(settings), source.digest),
        f"{setting_name('refine_steps')}, or other refinement": made is not None
        and made.settings.get(REFINE) == settings.get(REFINE),
        setting_name("seed"): made is not None and made.seed == seed,
        setting_name("labels"): made is not None and (made.labels == "teacher") == labelled_by_teacher(config),
        setting_name("keep_misclassified"): made is not None and made.keep_misclassified == config.emit.keep_misclassified,
        setting_name("samples_per_shard"): made is not None and config.emit.samples_per_shard in {None, made.samples_per_shard},
        setting_name("logits"): manifest.has_logits == config.emit.store_logits,
    }
    other = [name for name, equal in same.items() if not equal]
    if other:
        raise ClusterqError(
            f"{folder} holds shards of another {other[0]}, to which nothing can be added; use {setting_name('overwrite')} to replace them, or "
            f"write to a folder of their own with {setting_name('out')}."
        )


def _of_run(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings without its refinement. Those of an older version get today's names and defaults."""
    return {name: _of_today(name, value) for name, value in settings.items() if name != REFINE}


def _of_today(section: str, value: Any) -> Any:
    if section not in SECTIONS or not isinstance(value, dict):
        return value
    try:
        return SECTIONS[section].validated(value).model_dump(mode="json")
    except ClusterqError:  # of no version that is known: unlike anything of today
        return value


def labelled_by_teacher(config: GenConfig) -> bool:
    """Return whether labels are the teacher's own answers: as the settings ask, or in a bank that asks for no classes."""
    return not config.bank.labelled if is_bank(config.method.method) else config.emit.labelling == "teacher"


def run_settings(config: GenConfig) -> dict[str, Any]:
    """Return the hyperparameters of the generator or the bank, and of the refinement, for the manifest. They name no paths."""
    values = config.model_dump(mode="json")
    values["method"]["method"] = shown_arch(config.method.method)
    seed = values["runtime"]["seed"]
    if is_bank(config.method.method):
        # Settings that a bank does not use stay out. `labels` tells a receiver of the set what its labels mean.
        labels = "asked for; the teacher had to agree" if config.bank.labelled else "the teacher's own top-1"
        shared = {section: {name: values[section][name] for name in sorted(SHARED[section])} for section in ("method", "train")}
        return {"preset": values["preset"], **shared, "bank": values["bank"], "labels": labels, "seed": seed}
    sections = ("preset", "method", "quant", "generator", "train")
    refine = {name: value for name, value in values["emit"].items() if name.startswith(f"{REFINE}_")}
    kept = {**{section: values[section] for section in sections}, "seed": seed}
    return {**kept, REFINE: refine} if config.emit.refinement else kept


def plans_to_make(folder: Path, plans: list[ShardPlan], before: Manifest | None) -> list[ShardPlan]:
    """Return the plans of missing and damaged shards, without those that an earlier emission could not fill."""
    if before is None or before.generation is None:
        return plans
    listed = {shard.file: shard for split in before.splits.values() for shard in split.shards}
    made = before.generation
    planned = {plan.name for plan in plan_shards(made.rounds, before.teacher.spec.num_classes, made.samples_per_shard)}
    return [
        plan
        for plan in plans
        if (not _is_whole(folder, listed[plan.name]) if plan.name in listed else plan.name not in planned)
    ]


def _is_whole(folder: Path, shard: Shard) -> bool:
    path = folder / shard.file
    return path.is_file() and path.stat().st_size == shard.bytes and sha256_file(path) == shard.sha256
