"""Run a fine-tuning again from its result.json, and say whether the same student came out."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import info
from clusterq_common.run.run_folder import RESULT, STUDENT
from clusterq_common.settings import merged
from clusterq_common.shards.read import ShardSet
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.place import locate, saved_folder
from clusterq_common.teacher.trust import ARCH, WEIGHTS, refuse_foreign_code
from clusterq_finetune.commands import finetune
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.network_input import to_network_input
from clusterq_finetune.data.shard_batches import ShardDataset, batches, in_order
from clusterq_finetune.prepare import Request
from clusterq_finetune.results import read_result
from clusterq_finetune.student import load_student
from clusterq_report.run_data import section

# On another machine, or with other versions or threads, float32 sums round differently and training amplifies it: students count
# as equivalent when they name the same class on this share of the set's held-out images.
EQUIVALENT_AGREEMENT = 0.95
BATCH = 128


def reproduce(
    path: Path,
    out: Path,
    shards_path: str | Path | None,
    *,
    teacher: dict[str, str] | None = None,
    report: bool = True,
    sharing: SharingConfig | None = None,
) -> dict[str, Any]:
    """Repeat a fine-tuning with the same shards, teacher, settings, seed and threads into `out`.

    Args:
        path: its result.json, or the folder that holds it.
        out: folder of the new run.
        shards_path: folder or address where the shards are now; where they were then when None.
        teacher: fields of the teacher's settings that the command line gives, instead of the result's.
        report: whether the new run draws its page.
        sharing: limits for a set at an address, and whose sets are taken.

    Returns:
        `verdict`: `identical` (byte for byte), `equivalent` or `different`; both digests; where the bytes differ, the largest difference of a
        weight relative to the largest weight of its tensor, and the share of held-out images on which both students agree. Empty
        in every process of several but the first.

    Raises:
        ClusterqError: the result cannot be read, it names code that this user did not, or the shards or the teacher are not those it was made with.
    """
    saved = read_result(path, "teacher.digest", "shards.digest", "student.sha256")
    file = path / RESULT if path.is_dir() else path
    settings, given = section(saved["settings"]), {"teacher": teacher or {}}
    refuse_foreign_code(settings, given, file, looks_at=(ARCH, WEIGHTS))
    config = FinetuneConfig.validated(merged(settings, given), source=str(path))
    rules = sharing or SharingConfig()
    place = locate(shards_path or saved_folder(config.shards, file), rules)
    shards = ShardSet.open(place.folder)
    if shards.manifest.digest != saved["shards"]["digest"]:
        raise ClusterqError(
            f"{shards.folder} has digest {shards.manifest.digest[:19]}, {path} was made from {saved['shards']['digest'][:19]}; "
            "name the set it was made from.",
            setting="shards",
        )
    result = finetune(Request(_same_settings(config, saved["threads"], report=report), shards.folder, out, sharing=rules))
    if not result:
        return {}  # not the first of several processes
    if result["teacher"]["digest"] != saved["teacher"]["digest"]:
        raise ClusterqError(f"{path} was made for a teacher with digest {saved['teacher']['digest'][:19]}; pass those weights.")
    original = path if path.is_dir() else path.parent
    return _verdict(saved, result, (original, out), shards, config.teacher.arch)


def _same_settings(config: FinetuneConfig, threads: int, *, report: bool) -> dict[str, dict[str, Any]]:
    """Return a fine-tuning's settings by section, as flags of a new one."""
    values = config.model_dump()
    values["runtime"]["threads"] = threads
    flags = {section: values[section] for section in ("quant", "recipe", "runtime")}
    flags["output"] = {"report": report}
    flags["teacher"] = {name: value for name, value in values["teacher"].items() if value is not None}
    return flags


def _verdict(
    saved: dict[str, Any], result: dict[str, Any], folders: tuple[Path, Path], shards: ShardSet, arch: str
) -> dict[str, Any]:
    """Return how the students of two results compare; see `reproduce`.

    Args:
        saved, result: the first result and the new one.
        folders: theirs, in the same order. The first may lack its student.
        shards: the set of both.
        arch: architecture of both.
    """
    original, out = folders
    verdict = {"expected": saved["student"]["sha256"], "found": result["student"]["sha256"], "out": str(out)}
    if verdict["expected"] == verdict["found"]:
        return {"verdict": "identical", **verdict}
    differing = [name for name, version in result["versions"].items() if saved.get("versions", {}).get(name) != version]
    if differing:
        info(f"other versions than then: {', '.join(differing)}")
    if saved.get("processes", 1) != result["processes"]:
        info(f"{result['processes']} processes now, {saved.get('processes', 1)} then: sums round differently")
    if not (original / STUDENT).is_file():
        return {"verdict": "different", **verdict}
    verdict |= compare_students(original, out, shards, arch)
    same = verdict["agreement"] is not None and verdict["agreement"] >= EQUIVALENT_AGREEMENT
    return {"verdict": "equivalent" if same else "different", **verdict}


@torch.no_grad()
def compare_students(first: Path, second: Path, shards: ShardSet, arch: str) -> dict[str, Any]:
    """Compare two students: their weights, and their answers for the held-out images (None without such).

    `arch` is their architecture, as this user names it.
    """
    cpu = torch.device("cpu")
    models = [load_student(folder, cpu, arch)[0] for folder in (first, second)]  # first: it refuses what is no student
    one, two = load_file(first / STUDENT), load_file(second / STUDENT)
    if {name: value.shape for name, value in one.items()} != {name: value.shape for name, value in two.items()}:
        raise ClusterqError(
            f"{first / STUDENT} has other weights than {second / STUDENT}, expected one architecture; get it again."
        )
    apart = max(
        float((one[name].double() - two[name].double()).abs().max() / one[name].double().abs().max().clamp_min(1e-12))
        for name in one
        if one[name].is_floating_point() and one[name].numel()
    )
    if "heldout" not in shards.manifest.splits:
        return {"weights_apart": apart, "agreement": None}
    agreed = count = 0
    heldout = ShardDataset(shards, "heldout")
    for batch in batches(heldout, in_order(heldout, BATCH)):
        images = to_network_input(batch.pixels, shards.manifest.teacher.spec)
        a, b = (model(images).argmax(1) for model in models)
        agreed += int((a == b).sum())
        count += len(images)
    return {"weights_apart": apart, "agreement": agreed / count}
