"""The optimizer of a student, and its learning rate over the steps."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clusterq_common import schedules
from clusterq_common.device.rates import held_rate
from clusterq_common.quant.convert import parameters_by_kind
from clusterq_finetune.config import RecipeConfig


def build_optimizer(student: nn.Module, recipe: RecipeConfig, device: torch.device) -> torch.optim.Optimizer:
    """Build Adam (decoupled weight decay) or SGD (Nesterov 0.9), with decay on weight matrices alone.

    Decay would pull BatchNorm's scales and the quantizers' steps towards zero, which harms both.
    """
    weights, scales = parameters_by_kind(student)
    norms = {id(p) for module in student.modules() if isinstance(module, _BatchNorm) for p in module.parameters(recurse=False)}
    decayed = [p for p in weights if p.dim() > 1 and id(p) not in norms]
    chosen = {id(p) for p in decayed}
    free = [p for p in weights if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": [*free, *scales], "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    lr = held_rate(recipe.lr, device, graphs=recipe.cuda_graphs)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=lr, fused=True, capturable=recipe.cuda_graphs and device.type == "cuda")


def learning_rate(recipe: RecipeConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step. It depends on the step's number alone, so a resumed run needs no scheduler state."""
    factor = schedules.factor(recipe.schedule, step, recipe.epochs, steps_per_epoch=steps_per_epoch)
    return recipe.lr * schedules.warmup(step, recipe.warmup_steps) * factor
