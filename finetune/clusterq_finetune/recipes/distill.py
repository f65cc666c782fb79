"""The `distill` recipe: the student learns labels and the teacher's logits from synthetic images (ClusterQ Eq. 9)."""

import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from clusterq_common.distill.objective import StudentObjective
from clusterq_common.images import normalise
from clusterq_common.quant.convert import parameters_by_kind
from clusterq_common.runtime.checkpoint import load_checkpoint, save_checkpoint, taking_over
from clusterq_common.runtime.device import training_autocast
from clusterq_common.runtime.metrics import MetricsLog
from clusterq_common.runtime.progress import progress
from clusterq_common.runtime.run_folder import CHECKPOINT, METRICS
from clusterq_common.runtime.seeding import stream
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.augment import augment
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data import EpochSampler, ShardBatch, ShardDataset, batches

STEPS_BETWEEN_RECORDS = 25


def distill(
    student: nn.Module,
    teacher: Teacher,
    shards: ShardSet,
    config: FinetuneConfig,
    folder: Path,
    device: torch.device,
    *,
    resume: bool = False,
) -> None:
    """Train a calibrated student in place, from the `train` split; nothing is chosen along the way, the last step counts.

    BatchNorm stays in eval mode: synthetic images do not have the statistics that the teacher's layers were trained with.
    With `resume`, go on from the folder's checkpoint; the result is the same as without the interruption.

    Raises:
        ClusterqError: a loss is no longer finite; the last good checkpoint stays.
    """
    recipe, seed = config.recipe, config.runtime.seed
    student.eval()
    weights, scales = parameters_by_kind(student)
    optimizer = torch.optim.Adam([*weights, *scales], lr=recipe.lr, fused=True)
    objective = StudentObjective(recipe.ce_weight, recipe.kl_weight, recipe.temperature)

    dataset = ShardDataset(shards, "train")
    sampler = EpochSampler(len(dataset), seed)
    loader = batches(dataset, batch_size=recipe.batch_size, workers=recipe.workers, sampler=sampler)
    heldout = ShardDataset(shards, "heldout") if "heldout" in shards.manifest.splits else None
    total = recipe.epochs * len(loader)
    first_epoch = 0
    if resume and (folder / CHECKPOINT).is_file():
        state = load_checkpoint(folder / CHECKPOINT, device)
        with taking_over(folder / CHECKPOINT):
            student.load_state_dict(state["student"])
            optimizer.load_state_dict(state["optimizer"])
            first_epoch = state["epoch"]
    step = first_epoch * len(loader)
    log = MetricsLog(folder / METRICS, keep_before_step=step)
    last_save = time.monotonic()
    records: list[dict[str, Tensor | float]] = []

    with progress("fine-tuning", total, done=step) as ticker:
        for epoch in range(first_epoch, recipe.epochs):
            sampler.epoch = epoch
            for batch in loader:
                rate = recipe.lr * 0.5 * (1 + math.cos(math.pi * step / total))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                images, labels, teacher_logits = _prepare(batch, teacher, config, device, step)
                with training_autocast(config.runtime, device):
                    student_logits = student(images)
                terms = objective(student_logits, teacher_logits, labels)
                optimizer.zero_grad(set_to_none=True)
                torch.stack(list(terms.values())).sum().backward()
                optimizer.step()

                agreement = (student_logits.detach().argmax(1) == teacher_logits.argmax(1)).float().mean()
                losses = {f"loss/{name}": term.detach() for name, term in terms.items()}
                records.append({"step": step, **losses, "student/agreement": agreement, "lr": rate})
                step += 1
                note = ""
                if len(records) == STEPS_BETWEEN_RECORDS or step % len(loader) == 0:
                    last = log.append_step_values(records, folder / CHECKPOINT)[-1]
                    note = ", ".join(f"{key} {value:.3f}" for key, value in last.items() if key not in {"step", "lr"})
                    records = []
                ticker.advance(note=note)
            if heldout is not None:
                share = heldout_agreement(student, heldout, teacher, config, device)
                log.append([{"step": step - 1, "epoch": epoch, "heldout/agreement": share}])
            if epoch + 1 == recipe.epochs or time.monotonic() - last_save >= recipe.checkpoint_seconds:
                state = {"epoch": epoch + 1, "student": student.state_dict(), "optimizer": optimizer.state_dict()}
                save_checkpoint(folder / CHECKPOINT, state)
                last_save = time.monotonic()


@torch.no_grad()
def heldout_agreement(
    student: nn.Module, heldout: ShardDataset, teacher: Teacher, config: FinetuneConfig, device: torch.device
) -> float:
    """Share of held-out synthetic images on which student and teacher name the same class."""
    agreed = 0
    for batch in batches(heldout, batch_size=config.recipe.batch_size, workers=0):
        images = normalise(batch.pixels.to(device), teacher.spec).contiguous(memory_format=torch.channels_last)
        wanted = teacher.model(images) if batch.logits is None else batch.logits.to(device)
        agreed += int((student(images).argmax(1) == wanted.argmax(1)).sum())
    return agreed / max(1, len(heldout))


@torch.no_grad()
def _prepare(
    batch: ShardBatch, teacher: Teacher, config: FinetuneConfig, device: torch.device, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and teacher logits of a batch. Stored logits belong to the stored pixels: augmented ones need new."""
    kind = config.recipe.augment
    pixels = augment(batch.pixels, kind, stream(config.runtime.seed, "augment", step)).to(device, non_blocking=True)
    images = normalise(pixels, teacher.spec).contiguous(memory_format=torch.channels_last)
    labels = batch.labels.to(device, non_blocking=True)
    if kind == "none" and batch.logits is not None:
        return images, labels, batch.logits.to(device, non_blocking=True).float()
    return images, labels, teacher.model(images).float()
