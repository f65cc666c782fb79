"""`clusterq-finetune quantize`: a classifier in, a low-bit file that runs out, with a benchmark and a report."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_device
from clusterq_common.documents import read_json
from clusterq_common.errors import ClusterqError
from clusterq_common.export.for_target import file_for, format_for, quant_for
from clusterq_common.files import atomic_write, need_place, sha256_file
from clusterq_common.progress.console import followed_by, info, print_result
from clusterq_common.quant.choice_config import BitChoice
from clusterq_common.run.extras import need_onnx
from clusterq_common.run.folder_lock import only_program
from clusterq_common.run.run_folder import CONFIG, RESULT, SHARDS
from clusterq_common.run.run_folder import STUDENT as STUDENT_FILE
from clusterq_common.shards.manifest import MANIFEST
from clusterq_common.teacher.load import load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune import commands
from clusterq_finetune.benchmark.command import benchmark
from clusterq_finetune.benchmark.request import FloatSource, Timing
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.evaluation.real_images import named_images
from clusterq_finetune.export import export
from clusterq_finetune.prepare import Request
from clusterq_finetune.quantize.announce import Stages, announce
from clusterq_finetune.quantize.generate import generate
from clusterq_finetune.quantize.plan import EXPORTED, PLAN, SET, STUDENT, Plan, going_on_with
from clusterq_finetune.results import read_result
from clusterq_report.pages.draw import draw_report


def quantize(
    plan: Plan,
    out: Path,
    *,
    work: Path,
    val: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Go through the stages, those that the work folder does not hold yet. Returns what `--json` prints; nothing for a dry run.

    Args:
        plan: the settings.
        out: the file to write; its report is written beside it.
        work: folder of the stages.
        val: real images to evaluate on.
        overwrite: replace a file `out` that another command wrote.
        dry_run: say what would be done.
        quiet: no progress of `clusterq-gen` either; the caller sees to this process's own.

    Raises:
        ClusterqError: see the stages; the work folder or `out` are another command's.
        SystemExit: `clusterq-gen` failed, and said why.
    """
    begin = time.monotonic()
    _refuse(plan, val)
    going_on = plan.is_started(work)
    _refuse_file(out, work, overwrite=overwrite)
    device = prepare_device(RuntimeConfig.validated(plan.runtime))
    teacher = load_teacher(TeacherConfig.validated(plan.teacher), device=device)
    stages = announce(plan, teacher, device, work, out, val, going_on=going_on)
    if dry_run:
        return {}
    with only_program(work, setting="work"):
        if not going_on:
            plan.to_yaml(work / PLAN)
        shards = _set(plan, work, stages, quiet=quiet)
        with followed_by(stages.rest):
            _fine_tune(plan, shards, work / STUDENT, val, plan.student_seconds(time.monotonic() - begin))
        exported = _export(plan, work, out, overwrite=overwrite)
        measured = _benchmark(plan, work, out, shards, val)
        draw_report(work / STUDENT)
        report = draw_report(work / STUDENT, out.with_suffix(".html"))
    print_result(f"report: {report}")
    return {"out": str(out), "work": str(work), "report": str(report), "export": exported, "benchmark": measured}


def _refuse(plan: Plan, val: Path | None) -> None:
    """Raise ClusterqError for what no stage could be begun with."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ClusterqError(
            "quantize runs as one process, but torchrun started several; run its stages as commands of their own."
        )
    need_onnx("quantize", runtime=True)
    if format_for(plan.target, None) != "onnx":
        raise ClusterqError(
            f"--target: {plan.target} takes no ONNX file, which quantize writes, expected another target; fine-tune, then export with "
            f"--target {plan.target}."
        )
    # Refused now where the last stage would refuse them.
    named_images(val, plan.class_file, plan.reading)


def _refuse_file(out: Path, work: Path, *, overwrite: bool) -> None:
    if out.suffix != ".onnx":
        raise ClusterqError(f"--out: {out} ends in {out.suffix!r}, expected a file name that ends in .onnx; rename it.")
    need_place("out", out)
    if out.exists() and not overwrite and not _is_own(out, work):
        raise ClusterqError(f"--out: {out} exists, expected a new file; choose another name, or use --overwrite.")


def _is_own(out: Path, work: Path) -> bool:
    """Return whether the export stage of this work folder wrote the file as it is."""
    path = work / EXPORTED
    known = read_json(path, what="the export's record") if path.is_file() else None
    return isinstance(known, dict) and out.is_file() and known.get("sha256") == sha256_file(out)


def _set(plan: Plan, work: Path, stages: Stages, *, quiet: bool) -> Path:
    """Make the set unless it is there, with the speed that its plan was made for. Returns its folder."""
    if plan.shards is not None:
        return Path(plan.shards)
    folder = work / SET
    if not (folder / SHARDS / MANIFEST).is_file():
        message: dict[str, Any] = {"afterwards": stages.after_set}
        if stages.set_plan is not None:
            message["speed"] = stages.set_plan.speed
        generate([*plan.set_command(work), *going_on_with(work), *(["--quiet"] if quiet else [])], message)
    return folder


def _fine_tune(plan: Plan, shards: Path, folder: Path, val: Path | None, seconds: float | None) -> None:
    """Fine-tune within `seconds` unless the student is there, with its accuracy on real images where there are any."""
    if (folder / RESULT).is_file():
        result = read_result(folder, "student.sha256")
        if (val is None or "top1" in result["student"]) and result["student"]["sha256"] == sha256_file(folder / STUDENT_FILE):
            info(f"student: {folder}, which is there")
            return
    flags = {
        "teacher": plan.teacher,
        "quant": {**plan.quant, "bits": plan.bits},
        "recipe": {"recipe": plan.recipe},
        "runtime": plan.runtime,
        "choice": plan.choice,
        "evaluation": plan.evaluation,
    }
    resume = (folder / CONFIG).is_file()
    own_set = plan.shards is None
    request = Request(flags, shards, folder, val, plan.class_file, resume=resume, time_budget=seconds, own_set=own_set)
    commands.finetune(replace(request, accepted=True))


def _export(plan: Plan, work: Path, out: Path, *, overwrite: bool) -> dict[str, Any]:
    """Export unless the file is there; what it is like is kept in the work folder."""
    if _is_own(out, work):
        return dict(read_json(work / EXPORTED, what="the export's record")["export"])
    exported = export(
        work / STUDENT,
        None,
        out,
        plan.file,
        target=plan.target,
        arch=plan.teacher["arch"],
        overwrite=overwrite,
    )
    record = {"sha256": sha256_file(out), "export": exported}
    atomic_write(work / EXPORTED, json.dumps(record, indent=2) + "\n")
    return exported


def _benchmark(plan: Plan, work: Path, out: Path, shards: Path, val: Path | None) -> dict[str, Any]:
    """Measure the file beside float, on real images where there are any, else on the set's."""
    teacher: dict[str, str] = {name: str(plan.teacher[name]) for name in ("arch", "weights") if name in plan.teacher}
    return benchmark(
        out,
        FloatSource(student=work / STUDENT, teacher=teacher),
        Timing(threads=plan.runtime.get("threads"), runtime=plan.timed_in),
        real=named_images(val, plan.class_file, plan.reading),
        shards=shards if val is None else None,
    )


def plan_of(flags: dict[str, dict[str, Any]], **values: Any) -> Plan:
    """Return the plan of a command line: its flags by section, the target's choices, and the other values of a `Plan`.

    Raises:
        ClusterqError: the target cannot run them.
    """
    target = values["target"]
    quant = quant_for(target, {**flags.get("quant", {}), "bits": values["bits"]})
    quant.pop("bits")
    file_for(target, flags.get("onnx", {}))
    BitChoice.validated(flags.get("choice", {}))
    EvaluationConfig.validated(flags.get("evaluation", {}))
    teacher = TeacherConfig.validated(flags.get("teacher", {})).model_dump(mode="json", exclude_none=True)
    return Plan.validated(
        {
            "teacher": teacher,
            "quant": quant,
            "file": flags.get("onnx", {}),
            "runtime": flags.get("runtime", {}),
            "choice": flags.get("choice", {}),
            "evaluation": flags.get("evaluation", {}),
            **values,
        }
    )
