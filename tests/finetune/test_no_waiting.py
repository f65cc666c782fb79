"""Steps of fine-tuning keep a GPU busy: the host never waits for it, and nothing is left on the host."""

import pytest
import torch
from torch import nn

from clusterq_common.quant.adaround import learned_rounding
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import activation_sites, convert
from clusterq_common.quant.qdrop import RandomMask, dropped
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_finetune.config import resolve
from clusterq_finetune.data.resident import ResidentSplit
from clusterq_finetune.recipes.block_data import BlockBatch
from clusterq_finetune.recipes.block_steps import BlockTraining, rounded_layers
from clusterq_finetune.recipes.distillation import Distillation
from tests.elsewhere import ELSEWHERE, move, nothing_waits

SPEC = InputSpec(size=8, channels=1, num_classes=3, mean=(0.5,), std=(0.5,))
BATCH = 6
PLAIN = TeacherConfig(arch="plain")


def calibrated(quant: dict[str, object]) -> tuple[Teacher, nn.Module]:
    """A small classifier and its student, there."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval().requires_grad_(False)
    config = QuantConfig.validated(quant)
    student = convert(model, config, torch.zeros(1, 1, 8, 8), lambda _: None)
    calibrate(student, [torch.randn(16, 1, 8, 8)], config)
    for network in (model, student):
        move(network)
    return Teacher(model, PLAIN, SPEC, "sha256:0"), student


@pytest.mark.parametrize("quant", [{"bits": "w4a4"}, {"bits": "w3a3", "quantizer": "asymmetric", "range": "minmax"}])
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"augment": "crop-flip", "low_pass": 0.5, "weight_ema": 0.9, "ce_min_confidence": 0.5, "ce_weight": 1.0},
        {"feature_weight": 1.0, "augment": "flip", "lr_unit": "absolute", "optimizer": "sgd"},
    ],
    ids=["default", "all on images", "features"],
)
def test_a_fine_tuning_step_waits_for_nothing(
    quant: dict[str, object], recipe: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = calibrated(quant)
    config = resolve({"quant": quant, "recipe": recipe}, "shards", PLAIN)
    pixels = torch.empty(20, 1, 8, 8, dtype=torch.uint8, device=ELSEWHERE)
    split = ResidentSplit(pixels, torch.empty(20, dtype=torch.long, device=ELSEWHERE), None)
    run = Distillation(student, teacher, config, ELSEWHERE, stored_logits=False)
    for group in run.optimizer.param_groups:
        group["fused"] = False  # fused updates do not know the meta device
    with nothing_waits(monkeypatch):
        for _ in range(2):
            values = run.take_step(split.batch(list(range(BATCH))), BATCH, 1e-3)
            run.step += 1
    assert values["student/agreement"].device == ELSEWHERE
    assert all(parameter.grad is not None for parameter in student.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("quant", [{"bits": "w4a4"}, {"bits": "w3a3", "quantizer": "asymmetric", "range": "minmax"}])
def test_a_step_of_reconstruction_waits_for_nothing(quant: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    _, student = calibrated(quant)
    assert isinstance(student, nn.Sequential)
    block = student[:3].requires_grad_(False)
    recipe = resolve({"quant": quant, "recipe": {"reconstruct_steps": 5}}, "shards", PLAIN).recipe
    batch = BlockBatch(
        *(torch.empty(BATCH, 1, 8, 8, device=ELSEWHERE) for _ in range(2)), torch.empty(BATCH, 4, 6, 6, device=ELSEWHERE)
    )
    activations, mask = list(activation_sites(block).values()), RandomMask(0.5)
    with learned_rounding(rounded_layers(block)) as roundings, dropped(activations, mask):
        variables = [rounding.variable for rounding in roundings.values()]
        groups = [{"params": variables, "lr": 0.05, "falls": True}]
        training = BlockTraining(block, list(roundings.values()), groups, mask, recipe, 1.0, ELSEWHERE)
        training.optimizer.param_groups[0]["fused"] = False  # fused updates do not know the meta device
        with nothing_waits(monkeypatch):
            for step in range(recipe.reconstruct_steps):  # the regulariser is there from the second on
                training.take_step(batch, torch.Generator(), step)
        assert all(variable.grad is not None for variable in variables)
