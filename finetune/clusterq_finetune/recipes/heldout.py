"""Checkpoint selection on held-out synthetic images. Real images are never used."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.device.distributed import Ranks
from clusterq_common.device.reduce import sum_across
from clusterq_common.distill.kl import distillation_kl
from clusterq_common.errors import ClusterqError
from clusterq_common.quantities import without_rounding_below_zero
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import FinetuneConfig, RecipeConfig
from clusterq_finetune.data.network_input import to_network_input
from clusterq_finetune.data.shard_batches import ShardDataset, batches, in_order

MEASURED = ("heldout/agreement", "heldout/student_accuracy", "heldout/teacher_accuracy", "heldout/kl")


def need_heldout(recipe: RecipeConfig, shards: ShardSet) -> None:
    """Raise an error for a recipe that selects by held-out images where there are none.

    Raises:
        ClusterqError: the shards have no held-out images.
    """
    if recipe.select == "heldout" and "heldout" not in shards.manifest.splits:
        raise ClusterqError(
            f"heldout, but {shards.folder} has no held-out images, expected a split `heldout`; use {setting_name('select', 'last')}, or emit "
            f"shards with {setting_name('heldout_per_class')}.",
            setting="select",
        )


@torch.no_grad()
def measure_heldout(
    student: nn.Module, heldout: ShardDataset, teacher: Teacher, config: FinetuneConfig, device: torch.device
) -> dict[str, float]:
    """Measure the student's distance to the teacher on the held-out images, each counted once over all processes.

    Returns:
        `heldout/agreement`: share of images with the same predicted class; `heldout/student_accuracy`, `heldout/teacher_accuracy`:
        share with the stored label predicted; `heldout/kl`: `T^2 KL(teacher || student)`, mean.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in batches(heldout, in_order(heldout, config.recipe.batch_size, Ranks.current())):
        images = to_network_input(batch.pixels.to(device), teacher.spec, config.recipe.low_pass)
        own = batch.logits is None or config.recipe.low_pass > 0
        wanted = teacher.model(images).float() if own else batch.logits.to(device).float()
        logits = student(images)
        top1, teacher_top1, labels = logits.argmax(1), wanted.argmax(1), batch.labels.to(device)
        for place, same in enumerate((top1 == teacher_top1, top1 == labels, teacher_top1 == labels)):
            sums[place] += same.sum()
        sums[3] += distillation_kl(wanted, logits, config.recipe.temperature).double() * len(images)
    *shares, kl = (sum_across(sums) / len(heldout)).tolist()
    kl = without_rounding_below_zero(kl, unit=config.recipe.temperature**2)
    return dict(zip(MEASURED, (*shares, kl), strict=True))


# Epoch number of a student that no epoch has changed.
START = -1


@dataclass
class Selection:
    """The student with the least KL on held-out synthetic images so far; empty when nothing is selected."""

    kl: float = float("inf")
    epoch: int = START
    student: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, student: nn.Module, kl: float, epoch: int) -> None:
        """Keep a copy of the student if it is better than the kept one."""
        if kl < self.kl:
            self.kl, self.epoch = kl, epoch
            self.student = {name: value.detach().clone() for name, value in student.state_dict().items()}

    def forget_unless_better_than(self, kl: float) -> None:
        """Drop the kept student if the current one's KL is not larger. The current student is not copied."""
        if kl <= self.kl:
            self.kl, self.epoch, self.student = kl, START, {}

    def finish(self, student: nn.Module) -> None:
        """Load the kept weights into the student, if there are any."""
        if self.student:
            student.load_state_dict(self.student)

    def state_dict(self) -> dict[str, Any]:
        """Return the selection, for a checkpoint."""
        return {"kl": self.kl, "epoch": self.epoch, "student": self.student}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint's selection."""
        self.kl, self.epoch, self.student = state["kl"], state["epoch"], state["student"]
