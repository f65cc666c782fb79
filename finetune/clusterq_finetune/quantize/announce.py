"""The plan of `quantize` in words: what will happen, and how long it takes here."""

from dataclasses import dataclass
from pathlib import Path

import torch

from clusterq_common.escape import shell_command
from clusterq_common.export.for_target import name_and_status, stored_wider
from clusterq_common.export.targets import RUNTIMES, TARGETS
from clusterq_common.progress.console import info, print_result, warn
from clusterq_common.quant.choice_config import BitChoice
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.sensitivity import passes
from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.quantities import count, duration
from clusterq_common.run.extras import how_to_install
from clusterq_common.run.run_folder import RESULT, SHARDS
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.manifest import MANIFEST
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.pace import rough_duration, seconds_per_image
from clusterq_finetune.benchmark.command import BATCHES, MOST_SYNTHETIC
from clusterq_finetune.benchmark.timing import TURNS, WARM
from clusterq_finetune.budget import smallest_plan
from clusterq_finetune.config import resolve
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.quantize import estimate
from clusterq_finetune.quantize.generate import SetPlan, plan_set
from clusterq_finetune.quantize.plan import PLAN_ONLY, SET, SET_AND_STUDENT_SHARE, STUDENT, Plan, going_on_with
from clusterq_finetune.recipes.chosen_bits import MOST_TRIED
from clusterq_report.pages.deployment import timed_in


@dataclass(frozen=True)
class Stages:
    """Stages that are still to be done, and their estimated seconds.

    Attributes:
        set_plan: of the set; None where it is there.
        student: seconds of the fine-tuning; None where the student is there.
        least: seconds of its smallest useful plan.
        evaluation: seconds of an evaluation on the real images; 0 without.
        rest: seconds of export and benchmark.
    """

    set_plan: SetPlan | None
    student: float | None
    least: float
    evaluation: float
    rest: float

    @property
    def seconds(self) -> dict[str, float]:
        """Estimated seconds by stage."""
        named: dict[str, float] = {}
        if self.set_plan is not None:
            named["set of images"] = self.set_plan.seconds
        if self.student is not None:
            named["fine-tuning"] = self.student + self.evaluation
        return {**named, "export and benchmark": self.rest}

    @property
    def after_set(self) -> float:
        """Estimated seconds of the stages after the set."""
        return (self.student or 0.0) + self.evaluation * (self.student is not None) + self.rest


def announce(
    plan: Plan, teacher: Teacher, device: torch.device, work: Path, out: Path, val: Path | None, *, going_on: bool
) -> Stages:
    """Print what will happen and how long it takes. Returns the stages that are still to be done.

    Raises:
        ClusterqError: see `open_validation` and `ShardSet.open`, before any stage has begun.
        SystemExit: `clusterq-gen` refuses the set's settings, and said why.
    """
    images = None if val is None else _real_images(plan, teacher, val)
    stages = _stages(plan, teacher, device, work, images)
    evaluation = "" if images is None else f"{count(images, 'real image')} in {val}, {rough_duration(stages.evaluation)}"
    if plan.time_budget is not None and stages.evaluation > (1 - SET_AND_STUDENT_SHARE) * plan.time_budget:
        warn(
            f"{setting_name('time_budget')}: the benchmark's evaluation on {count(images, 'real image')} takes longer than the share of the budget that is "
            f"left for it, and is not shortened; fewer images in {setting_name('val')} would be."
        )
    if plan.time_budget is not None and stages.student is not None and stages.least > stages.student:
        warn(
            f"{setting_name('time_budget')}: the smallest useful fine-tuning takes about {duration(stages.least)}, more than the "
            f"{duration(stages.student)} of the budget that are left for it, and is made all the same; allow more time, or use "
            f"{setting_name('recipe', 'calibrated')}."
        )
    begins = "goes on with" if going_on else "makes"
    print_result(f"{plan.teacher['arch']} to {plan.bits} for {name_and_status(plan.target)}; {begins} the stages in {work}")
    print_result(_in_all(plan, stages, device))
    print_result(TARGETS[plan.target].speed)
    wider = stored_wider(plan.target, QuantConfig(bits=plan.bits).parsed_bits.weights, plan.file)
    if wider is not None:
        print_result(wider)
    if stages.set_plan is None:
        print_result(f"1. set of images: {plan.shards or work / SET}, which is there")
    else:
        print_result(f"1. set of images: {shell_command('clusterq-gen', *plan.set_command(work))}")
        for line in stages.set_plan.lines:
            print_result(f"   {line}")
    if stages.student is None:
        print_result(f"2. fine-tuning: {work / STUDENT}, which is there")
    else:
        chosen = ", with the choice of bits by layer before it" if plan.choice else ""
        print_result(f"2. fine-tuning: recipe {plan.recipe}, {rough_duration(stages.student)} on {device}{chosen}")
        if evaluation:
            print_result(f"   then teacher and student on {evaluation}")
    print_result(f"3. export: {out}")
    print_result(
        f"4. benchmark: speed beside float {timed_in(plan.target, plan.timed_in)}, and both files on {evaluation or 'held-out images of the set'}"
    )
    package = TARGETS[plan.target].package
    if package not in (None, plan.timed_in):
        print_result(f"   to time it in {RUNTIMES[package]}: {how_to_install(package)}")
    print_result(f"5. report: {out.with_suffix('.html')}")
    print_result("Finished stages stay: the same command goes on after an interruption.")
    return stages


def _in_all(plan: Plan, stages: Stages, device: torch.device) -> str:
    """Return the time of all stages in words. Only the set's comes from steps of its own; the others follow from the classifier's pace."""
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in stages.seconds.items())
    rough = f"a rough estimate from the classifier's pace on {device}: {parts}"
    if plan.time_budget is not None:
        return f"in all: planned to end within {duration(plan.time_budget)} of the start ({rough})"
    return f"in all: {rough_duration(sum(stages.seconds.values()))} ({rough})"


def _real_images(plan: Plan, teacher: Teacher, val: Path) -> int:
    pixel_range = plan.reading.black_and_white
    return len(open_validation(val, teacher.spec, classes=plan.class_file, pixel_range=pixel_range, own=True))


def _stages(plan: Plan, teacher: Teacher, device: torch.device, work: Path, images: int | None) -> Stages:
    set_plan, shards = None, _shards(plan, work)
    if shards is None:
        info("clusterq-gen measures a few steps for the plan of the set")
        set_plan = plan_set([*plan.set_command(work), *going_on_with(work), *PLAN_ONLY])
        samples, heldout = set_plan.training, set_plan.heldout or set_plan.training
    else:
        splits = shards.manifest.splits
        samples = splits["train"].samples
        heldout = (splits.get("heldout") or splits["train"]).samples
    pace = seconds_per_image(teacher, device)
    student, least = None, 0.0
    if not (work / STUDENT / RESULT).is_file():
        student, least = (pace * passes for passes in _student_passes(plan, teacher, device, samples))
        budget = plan.student_seconds(0.0 if set_plan is None else set_plan.seconds)
        student = student if budget is None else min(student, budget)
    looked_at = min(heldout, MOST_SYNTHETIC) if images is None else images
    rest = estimate.EXPORT_SECONDS + pace * (estimate.timing(BATCHES, WARM + TURNS) + estimate.evaluation(looked_at))
    return Stages(set_plan, student, least, pace * estimate.evaluation(images or 0), rest)


def _student_passes(plan: Plan, teacher: Teacher, device: torch.device, samples: int) -> tuple[float, float]:
    """Return the passes of the fine-tuning, and those of its smallest useful plan."""
    config = resolve({"recipe": {"recipe": plan.recipe}}, "", teacher.config)
    recipe = config.recipe
    choice = BitChoice.validated(plan.choice)
    whole, least = (estimate.fine_tuning(one.recipe, samples) for one in (config, smallest_plan(config, samples)))
    chosen = 0.0
    if choice.active:
        layers = len(quantizable_layers(teacher.model, teacher.spec.example().to(device)))
        measured = passes(layers, weights=choice.weights, inputs=choice.average_input_bits is not None)
        chosen = estimate.choice_of_bits(choice, recipe, samples, measured=measured, tried=MOST_TRIED)
    return whole + chosen, least + chosen


def _shards(plan: Plan, work: Path) -> ShardSet | None:
    """Return the set; None where it is still to be made.

    Raises:
        ClusterqError: see `ShardSet.open`.
    """
    if plan.shards is None and not (work / SET / SHARDS / MANIFEST).is_file():
        return None
    # Fine-tuning verifies them.
    return ShardSet.open(Path(plan.shards or work / SET), verify=False)
