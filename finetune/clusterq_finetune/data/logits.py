"""Source of the logits that the student learns from: stored with the images, or recomputed by the teacher."""

from dataclasses import dataclass

import torch

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.recheck import logits_tolerance
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import RecipeConfig
from clusterq_finetune.data.network_input import to_network_input
from clusterq_finetune.data.shard_batches import ShardBatch


@dataclass(frozen=True)
class LogitsSource:
    """The chosen source, and the largest difference of stored logits from the teacher's on the compared images.

    Attributes:
        stored: whether the shards' float16 logits are used.
        largest_difference: None where there was nothing to compare.
        tolerance: largest allowed difference.
    """

    stored: bool
    largest_difference: float | None
    tolerance: float | None

    def as_result(self) -> dict[str, object]:
        """Return the choice as a section of result.json."""
        source = "stored" if self.stored else "recomputed"
        return {"source": source, "largest_difference": self.largest_difference, "tolerance": self.tolerance}


@torch.no_grad()
def choose_logits(
    recipe: RecipeConfig, batch: ShardBatch, teacher: Teacher, device: torch.device, *, compared: int | None = None
) -> LogitsSource:
    """Choose the source, and compare the stored logits of one batch with the teacher's.

    Args:
        recipe: the recipe.
        batch: a batch of the set.
        teacher: the float network.
        device: its device.
        compared: how many of the batch's images are compared, at most; all if None.

    Raises:
        ClusterqError: stored logits are requested and there are none, or they are not this teacher's.
    """
    wanted = recipe.teacher_logits == "stored" or (recipe.teacher_logits == "auto" and not recipe.asks_teacher)
    if batch.logits is None:
        if recipe.teacher_logits == "stored":
            raise ClusterqError(
                "stored, but these shards hold no logits, expected .logits.npy members; use recomputed.",
                setting="teacher_logits",
            )
        return LogitsSource(False, None, None)
    images = to_network_input(batch.pixels[:compared].to(device), teacher.spec)
    now = teacher.model(images).float().cpu()
    apart = (batch.logits[:compared].float() - now).abs().amax(1)
    allowed = logits_tolerance(now)
    worst = int((apart / allowed).argmax())
    if wanted and apart[worst] > allowed[worst]:
        raise ClusterqError(
            f"a stored logit is {float(apart[worst]):.3g} off the teacher's, expected at most {float(allowed[worst]):.2g}; "
            f"check the set with `clusterq-finetune shards verify`, or pass {setting_name('teacher_logits', 'recomputed')}.",
            setting="shards",
        )
    return LogitsSource(wanted, float(apart[worst]), float(allowed[worst]))
