"""The teacher of a set of shards, and the permitted sources of its weights."""

from pathlib import Path
from typing import Any

import torch

from clusterq_common.errors import ClusterqError
from clusterq_common.run.run_folder import CONFIG
from clusterq_common.setting_names import setting_name
from clusterq_common.settings import read_yaml
from clusterq_common.shards.manifest import Manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import TeacherConfig, is_factory
from clusterq_common.teacher.trust import ARCH, WEIGHTS, refuse_foreign_code

SPEC_FIELDS = {"input_size": "size", "in_channels": "channels", "num_classes": "num_classes", "mean": "mean", "std": "std"}


def run_folder_of(shards: ShardSet) -> Path | None:
    """The run folder that the shards lie in, when they lie in one."""
    parent = shards.folder.resolve().parent
    return parent if (parent / CONFIG).is_file() else None


def find_teacher(flags: dict[str, Any], run: Path | None, manifest: Manifest) -> TeacherConfig:
    """The teacher's settings: flags, else the local run folder's config, else a pytorchcv name in the manifest.

    A factory file or a weights path is never taken from a manifest: shards come from strangers. Sizes and normalisation,
    which cannot do harm, are. A config's factory is taken where this user's program wrote the config (`trust`).

    Args:
        flags: teacher fields given on the command line, or that `refuse_foreign_code` let through.
        run: the local run folder that the shards lie in, if they do.
        manifest: the shards' manifest.

    Raises:
        ClusterqError: nothing names the teacher, or a folder that was received names code.
    """
    values = read_yaml(run / CONFIG) if run is not None and (run / CONFIG).is_file() else {}
    saved = values.get("teacher", {})
    if not isinstance(saved, dict):
        raise ClusterqError(f"{run}/{CONFIG}: teacher is {type(saved).__name__}, expected a section; get the file again.")
    # Two factories are likely one model at two places, and the digest tells; a name is another model, with sizes of its own.
    before = saved.get("arch")
    both_own = is_factory(str(before)) and is_factory(flags.get("arch", ""))
    if "arch" in flags and flags["arch"] != before and not both_own:
        saved = {}
    known = {**saved, **flags}
    if run is not None:
        refuse_foreign_code({"teacher": saved}, {"teacher": flags}, run / CONFIG, looks_at=(ARCH, WEIGHTS))
    if "arch" not in known:
        # Whatever the manifest says of itself: a name that would load code is never followed.
        if manifest.teacher.is_factory or is_factory(manifest.teacher.arch):
            raise ClusterqError(
                f"{setting_name('arch')} is missing: these shards were made for a model of someone's own ({manifest.teacher.arch}), expected your "
                f"copy of it; pass {setting_name('arch', 'path/to/file.py:factory')} {setting_name('weights', 'FILE')}."
            )
        known["arch"] = manifest.teacher.arch
    # A pytorchcv name other than the manifest's brings its own sizes; the digest will tell that it is another teacher.
    if is_factory(known["arch"]) or known["arch"] == manifest.teacher.arch:
        spec = manifest.teacher.spec.model_dump()
        known |= {field: spec[name] for field, name in SPEC_FIELDS.items() if known.get(field) is None}
    return TeacherConfig.validated(known)


def load_checked_teacher(config: TeacherConfig, manifest: Manifest, device: torch.device) -> Teacher:
    """Load the teacher and make sure that the shards were made for these very weights.

    Raises:
        ClusterqError: another digest than the manifest's, or see `load_teacher`.
    """
    teacher = load_teacher(config, device=device)
    if teacher.digest != manifest.teacher.digest:
        raise ClusterqError(
            f"they were made for a teacher with digest {manifest.teacher.digest} ({manifest.teacher.arch}), but "
            f"{config.arch} with weights {config.weights or 'from pytorchcv'} has {teacher.digest}; pass the weights they were made "
            f"for with {setting_name('weights')}.",
            setting="shards",
        )
    return teacher
