"""`clusterq-finetune quantize`: a classifier in, a low-bit file that runs out, with a benchmark and a report."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_device
from clusterq_common.documents import read_json
from clusterq_common.errors import ClusterqError
from clusterq_common.escape import shell_command
from clusterq_common.export.for_target import file_for, format_for, quant_for, said_of, stored_wider
from clusterq_common.export.targets import TARGETS
from clusterq_common.files import atomic_write, sha256_file
from clusterq_common.progress.console import info, print_result, warn
from clusterq_common.quant.choice_config import BitChoice
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quantities import count, duration
from clusterq_common.run.child_process import run_program
from clusterq_common.run.extras import need
from clusterq_common.run.folder_lock import only_program
from clusterq_common.run.run_folder import CONFIG, RESULT, SHARDS
from clusterq_common.run.run_folder import STUDENT as STUDENT_FILE
from clusterq_common.shards.manifest import MANIFEST
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.pace import said, seconds_per_image
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune import commands
from clusterq_finetune.benchmark.command import benchmark, refuse_idle_evaluation
from clusterq_finetune.config import EvaluationConfig, RecipeConfig, resolve
from clusterq_finetune.config.recipe import LEAST_STEPS
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.export import export
from clusterq_finetune.prepare import Request
from clusterq_finetune.quantize.plan import EXPORTED, PLAN, SET, SET_AND_STUDENT_SHARE, STUDENT, Plan
from clusterq_finetune.results import read_result
from clusterq_report.pages.deployment import timed_in
from clusterq_report.pages.draw import draw_report

# Passes of an image through the teacher, forward and back, that an image of a training step stands for; those of a step of
# reconstruction, which is of one block at a time, add up to one network.
PASSES, BLOCK_PASSES = 2.5, 3.0
# The same for a real image, which a teacher and a student look at in one stage and two files in another: forward alone.
EVALUATION_PASSES = 0.8


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
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ClusterqError(
            "quantize runs as one process, but torchrun started several; run its stages as commands of their own."
        )
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, "quantize", "onnx")
    if format_for(plan.target, None) != "onnx":
        raise ClusterqError(
            f"--target: {plan.target} takes no ONNX file, which quantize writes, expected another target; fine-tune, then export with "
            f"--target {plan.target}."
        )
    refuse_idle_evaluation(val, plan.class_file, plan.reading)
    going_on = plan.refuse_other(work)
    _refuse_file(out, work, overwrite=overwrite)
    device = prepare_device(RuntimeConfig.validated(plan.runtime))
    teacher = load_teacher(TeacherConfig.validated(plan.teacher), device=device)
    _announce(plan, teacher, device, work, out, val, going_on=going_on)
    if dry_run:
        return {}
    with only_program(work, setting="work"):
        if not going_on:
            plan.to_yaml(work / PLAN)
        shards = _set(plan, work, quiet=quiet)
        _fine_tune(plan, shards, work / STUDENT, val, plan.student_seconds(time.monotonic() - begin))
        exported = _export(plan, work, out, overwrite=overwrite)
        measured = benchmark(
            out,
            student=work / STUDENT,
            teacher={name: str(plan.teacher[name]) for name in ("arch", "weights") if name in plan.teacher},
            val=val,
            shards=shards if val is None else None,
            classes=plan.class_file,
            evaluation=plan.reading,
            threads=plan.runtime.get("threads"),
        )
        draw_report(work / STUDENT)
        report = draw_report(work / STUDENT, out.with_suffix(".html"))
    print_result(f"report: {report}")
    return {"out": str(out), "work": str(work), "report": str(report), "export": exported, "benchmark": measured}


def _refuse_file(out: Path, work: Path, *, overwrite: bool) -> None:
    if out.suffix != ".onnx":
        raise ClusterqError(f"--out: {out} ends in {out.suffix!r}, expected a file name that ends in .onnx; rename it.")
    if not out.parent.is_dir():
        raise ClusterqError(f"--out: {out.parent} is no folder, expected one that exists; make it first.")
    if out.exists() and not overwrite and not _is_own(out, work):
        raise ClusterqError(f"--out: {out} exists, expected a new file; choose another name, or use --overwrite.")


def _is_own(out: Path, work: Path) -> bool:
    """Return whether the export stage of this work folder wrote the file as it is."""
    path = work / EXPORTED
    known = read_json(path, what="the export's record") if path.is_file() else None
    return isinstance(known, dict) and out.is_file() and known.get("sha256") == sha256_file(out)


def _announce(
    plan: Plan, teacher: Teacher, device: torch.device, work: Path, out: Path, val: Path | None, *, going_on: bool
) -> None:
    """Print what will happen and how long it takes.

    Raises:
        ClusterqError: see `open_validation`, before any stage has begun.
    """
    pace, evaluation = seconds_per_image(teacher, device), ""
    if val is not None:
        pixel_range = plan.reading.black_and_white
        images = len(open_validation(val, teacher.spec, classes=plan.class_file, pixel_range=pixel_range, own=True))
        seconds = EVALUATION_PASSES * images * pace
        evaluation = f"{count(images, 'real image')} in {val}, {said(seconds)}"
        if plan.time_budget is not None and seconds > (1 - SET_AND_STUDENT_SHARE) * plan.time_budget:
            warn(
                f"--time-budget: the benchmark's evaluation on {count(images, 'real image')} takes longer than the share of the budget that is "
                "left for it, and is not shortened; fewer images in --val would be."
            )
    begins = "goes on with" if going_on else "makes"
    print_result(f"{plan.teacher['arch']} to {plan.bits} for {said_of(plan.target)}; {begins} the stages in {work}")
    print_result(TARGETS[plan.target].speed)
    wider = stored_wider(plan.target, QuantConfig(bits=plan.bits).parsed_bits.weights, plan.file)
    if wider is not None:
        print_result(wider)
    samples = _training_images(plan, work)
    if samples is not None:
        print_result(f"1. set of images: {plan.shards or work / SET}, which is there")
    else:
        print_result(f"1. set of images: {shell_command('clusterq-gen', *plan.set_command(work))}")
        _generate([*plan.set_command(work), "--dry-run"])
    if (work / STUDENT / RESULT).is_file():
        print_result(f"2. fine-tuning: {work / STUDENT}, which is there")
    else:
        recipe = resolve({"recipe": {"recipe": plan.recipe}}, "", teacher.config).recipe
        seconds = _passes(recipe, samples or 0) * pace
        counted = LEAST_STEPS * recipe.batch_size
        unknown = samples is None and recipe.epochs > 0 and recipe.steps_per_epoch is None
        more = f", longer where the set has more than {counted:,} images" if unknown else ""
        planned = f", planned to end within {duration(plan.time_budget)} of the start" if plan.time_budget is not None else ""
        chosen = ", and the choice of bits by layer before it" if plan.choice else ""
        print_result(f"2. fine-tuning: recipe {plan.recipe}, {said(seconds)} on {device}{more}{chosen}{planned}")
        if evaluation:
            print_result(f"   then teacher and student on {evaluation}")
    print_result(f"3. export: {out}")
    print_result(
        f"4. benchmark: speed beside float {timed_in(plan.target)}, and both files on {evaluation or 'held-out images of the set'}"
    )
    print_result(f"5. report: {out.with_suffix('.html')}")
    print_result("Finished stages stay: the same command goes on after an interruption.")


def _training_images(plan: Plan, work: Path) -> int | None:
    """Return the number of the set's training images; None where the set is still to be made.

    Raises:
        ClusterqError: see `ShardSet.open`.
    """
    if plan.shards is None and not (work / SET / SHARDS / MANIFEST).is_file():
        return None
    # Fine-tuning verifies them.
    return len(ShardSet.open(Path(plan.shards or work / SET), verify=False).split("train"))


def _passes(recipe: RecipeConfig, samples: int) -> float:
    """Return the work of a fine-tuning on so many images, in passes of one image through the teacher."""
    steps = recipe.epochs * (recipe.steps(samples) or -(-samples // recipe.batch_size))
    rebuilt = 0 if recipe.reconstruct == "none" else recipe.reconstruct_steps * recipe.reconstruct_batch_size
    return steps * recipe.batch_size * PASSES + rebuilt * BLOCK_PASSES + 2 * recipe.calibration_images


def _generate(arguments: list[str]) -> None:
    """Run `clusterq-gen`.

    Raises:
        SystemExit: it failed, and said why.
        ClusterqError: a signal ended it, which said nothing.
    """
    code = run_program("clusterq_gen", arguments)
    if code < 0:
        raise ClusterqError(
            f"clusterq-gen was ended by signal {-code}, expected it to finish; where memory ran out, give it a smaller --batch-size with "
            "--set-flags, otherwise run the same command again."
        )
    if code:
        raise SystemExit(code)


def _set(plan: Plan, work: Path, *, quiet: bool) -> Path:
    """Make the set unless it is there; returns its folder."""
    if plan.shards is not None:
        return Path(plan.shards)
    folder = work / SET
    if not (folder / SHARDS / MANIFEST).is_file():
        more = ["--resume"] if (folder / CONFIG).is_file() else []
        _generate([*plan.set_command(work), *more, *(["--quiet"] if quiet else [])])
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
    commands.finetune(Request(flags, shards, folder, val, plan.class_file, resume=resume, time_budget=seconds, own_set=own_set))


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
