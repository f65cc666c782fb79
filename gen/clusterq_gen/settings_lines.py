"""First lines of a generator run: what the settings alone decide, said before torch is imported. Free of torch."""

from clusterq_common.quantities import count, duration
from clusterq_common.run.run_folder import BANK, GENERATOR, REPORT, SHARDS
from clusterq_common.teacher.size import SMALL_SIDE
from clusterq_gen.bank.config import is_bank
from clusterq_gen.config import EmitConfig, GenConfig
from clusterq_gen.given import Meant


def settings_lines(meant: Meant, time_budget: float | None = None) -> list[str]:
    """Return method, steps, images, phases and files of a run as lines.

    Args:
        meant: the configurations that the run can have.
        time_budget: seconds of a new run, whose plan may become smaller.
    """
    first = meant.plans[0]
    if meant.by_size:
        lines = [f"method: {first.method.method}, preset by the input's size; student {first.quant.bits}"]
        for plan in meant.plans:
            inputs = f"up to {SMALL_SIDE} pixels" if plan.preset == "paper-cifar" else f"above {SMALL_SIDE} pixels"
            lines.append(f"{inputs} ({plan.preset}): {steps_of(plan)}; {images_of(plan)}")
    else:
        lines = [
            f"method: {first.method.method}, preset {first.preset}; student {first.quant.bits}",
            f"steps: {steps_of(first)}",
            f"images: {images_of(first)}",
        ]
    lines.append(f"phases: {phases_of(first)}")
    if time_budget is not None:
        lines.append(f"time budget: {duration(time_budget)}; steps and images become fewer where they do not fit")
    return lines


def steps_of(plan: GenConfig) -> str:
    """Return the steps of the training or of each batch of the bank."""
    train = plan.train
    if is_bank(plan.method.method):
        return f"{plan.bank.bank_steps} for each batch of {train.batch_size} images"
    warm_up = count(train.warmup_epochs, "epoch")
    return f"{count(train.epochs, 'epoch')} x {train.steps_per_epoch}, {warm_up} of warm-up; batch {train.batch_size}"


def images_of(plan: GenConfig) -> str:
    """Return the number of images wanted, or its bound where the number of classes is not among the settings."""
    emit, classes = plan.emit, plan.teacher.num_classes
    if classes is not None:
        wanted = emit.wanted(classes)
        text = f"{wanted['train'] * classes:,} for training and {wanted['heldout'] * classes:,} held out"
    else:
        most = "" if emit.images is None else f", at most {emit.images:,} in all (one of each at least)"
        text = f"{emit.per_class} of each class for training{most}; {_held_out(emit)}"
    return f"{text}; {emit.refine_steps} steps of refinement each" if emit.refine_steps else text


def _held_out(emit: EmitConfig) -> str:
    if emit.heldout_per_class is None:
        return "a tenth as many held out"
    return f"{emit.heldout_per_class} of each class held out"


def phases_of(plan: GenConfig) -> str:
    """Return the phases by the names that the estimate has, with the files that they leave."""
    trained = f"bank ({BANK}/)" if is_bank(plan.method.method) else f"generator ({GENERATOR})"
    refined = ["refinement"] if plan.emit.refine_steps else []
    page = [f"report ({REPORT})"] if plan.output.report else []
    return ", ".join([trained, *refined, f"shards ({SHARDS}/)", *page])
