"""Stored logits that belong to another teacher, or to other images."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.config import RecipeConfig
from clusterq_finetune.data.logits import choose_logits
from clusterq_finetune.data.network_input import to_network_input
from clusterq_finetune.data.shard_batches import ShardBatch

SPEC = InputSpec(size=4, channels=1, num_classes=3, mean=(0.5,), std=(0.5,))


def test_one_wrong_image_of_a_batch_is_found() -> None:
    torch.manual_seed(0)
    teacher: Any = SimpleNamespace(model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), spec=SPEC)
    pixels = torch.randint(0, 256, (32, 1, 4, 4), dtype=torch.uint8)
    logits = teacher.model(to_network_input(pixels, SPEC)).detach().half()
    cpu, recipe = torch.device("cpu"), RecipeConfig()
    assert choose_logits(recipe, ShardBatch(pixels, torch.zeros(32), logits), teacher, cpu).stored
    logits[-1] += 1
    with pytest.raises(ClusterqError, match="off the teacher's"):
        choose_logits(recipe, ShardBatch(pixels, torch.zeros(32), logits), teacher, cpu)
