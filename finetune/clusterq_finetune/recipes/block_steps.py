"""Training of one block to reproduce the output of the float network's block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common import schedules
from clusterq_common.device.cuda_graph import GraphedStep, Recorder, StaticInputs
from clusterq_common.device.rates import set_group_rate
from clusterq_common.quant.adaround import LearnedRounding, learned_rounding
from clusterq_common.quant.convert import activation_sites
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.modules import QuantConv2d, QuantLinear
from clusterq_common.quant.qdrop import RandomMask, dropped
from clusterq_common.run.seeding import stream
from clusterq_finetune.config import RecipeConfig
from clusterq_finetune.recipes.block_data import BlockBatch, BlockData

# Share of the steps before the regulariser starts, and the regulariser's beta at that moment and at the end (BRECQ's values).
WARM_UP_SHARE = 0.2
FIRST_BETA, LAST_BETA = 20.0, 2.0
IMAGES_MEASURED = 256


def reconstruct_block(
    module: nn.Module, data: BlockData, recipe: RecipeConfig, seed: int, number: int, recorder: Recorder | None = None
) -> Iterator[int]:
    """Train one block and fix its rounding at the end. Yields the number of each step done.

    The loss is `n E / E0 + weight * sum over n weights of 1 - |2 h - 1|^beta`. E is the squared error of the output for an image,
    and E0 is that error with rounding to nearest. BRECQ has E alone and a weight of 0.01, whose effect depends on the size of
    activations and layers. The input is the student's. With the drop probability, each element is the float network's instead.

    Args:
        module: the student's block.
        data: inputs and targets of the block.
        recipe: numbers of steps and learning rates.
        seed: seed of the run.
        number: number of the block; it keys the block's random draws.
        recorder: records and replays the steps.
    """
    first_error = max(squared_error(module, data)[0], 1e-30)
    activations = list(activation_sites(module).values())
    mask = RandomMask(recipe.drop_probability)
    with _others_frozen(module, activations), learned_rounding(rounded_layers(module)) as roundings, dropped(activations, mask):
        groups = _parameter_groups(list(roundings.values()), activations, recipe)
        if not groups:
            return
        training = BlockTraining(module, list(roundings.values()), groups, mask, recipe, first_error, data.device, recorder)
        for step in range(recipe.reconstruct_steps):
            random = stream(seed, "reconstruct", number, step)
            indices = torch.randint(len(data), (recipe.reconstruct_batch_size,), generator=random)
            draws = torch.Generator(data.device).manual_seed(stream(seed, "drop", number, step).initial_seed())
            training.take_step(data.batch(indices), draws, step)
            yield step


class BlockTraining:
    """Training steps of a block.

    Args:
        module: the student's block, whose layers use `roundings`.
        roundings: learned roundings of its layers.
        groups: parameter groups for the optimizer, with `lr` the first rate; with `falls` it decays to zero on half a cosine.
        mask: random mask for the block's activations and its input.
        recipe: numbers of steps and weights.
        first_error: E0, above 0.
        device: device of the block.
        recorder: records and replays the steps.
    """

    def __init__(
        self,
        module: nn.Module,
        roundings: list[LearnedRounding],
        groups: list[dict[str, Any]],
        mask: RandomMask,
        recipe: RecipeConfig,
        first_error: float,
        device: torch.device,
        recorder: Recorder | None = None,
    ) -> None:
        self.module, self.roundings, self.mask, self.recipe = module, roundings, mask, recipe
        self.scale = max(sum(rounding.variable.numel() for rounding in roundings), 1) / first_error
        self.first_rates: list[float] = [group["lr"] for group in groups]
        # With a recorder, values from the host are tensors, because a recording would freeze plain numbers.
        if recorder is not None:
            groups = [{**group, "lr": torch.tensor(group["lr"], device=device)} for group in groups]
        self.beta = torch.zeros((), device=device)
        self.inputs: StaticInputs[BlockBatch] = StaticInputs()
        self._regularised = False
        self.graph = None if recorder is None else GraphedStep(self._held_step, recorder)
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=recorder is not None and device.type == "cuda")

    def take_step(self, batch: BlockBatch, draws: torch.Generator, step: int) -> None:
        """Take one optimizer step. The mask's random values are drawn here."""
        falling = schedules.cosine(step, self.recipe.reconstruct_steps)
        for group, rate in zip(self.optimizer.param_groups, self.first_rates, strict=True):
            set_group_rate(group, rate * (falling if group["falls"] else 1.0))
        self.mask.begin(draws)
        beta = annealed_beta(step, self.recipe.reconstruct_steps)
        if self.graph is None:
            self._device_step(batch, beta)
        else:
            self.inputs.hold(batch)
            self._regularised = beta is not None
            if beta is not None:
                self.beta.fill_(beta)
            self.graph(phase=beta is None)

    def _held_step(self) -> dict[str, Tensor]:
        return self._device_step(self.inputs.held, self.beta if self._regularised else None)

    def _device_step(self, batch: BlockBatch, beta: float | Tensor | None) -> dict[str, Tensor]:
        """Take the step on the device, without synchronising or reading a value, as a CUDA graph requires."""
        output = self.module(self.mask.mix(batch.float_input, batch.student_input))
        loss = (output - batch.target).square().sum() * (self.scale / len(output))
        if beta is not None:
            loss = loss + self.recipe.rounding_weight * sum(rounding.regulariser(beta) for rounding in self.roundings)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


def annealed_beta(step: int, steps: int) -> float | None:
    """Return the regulariser's exponent at a step: None during warm-up, then falling linearly."""
    warm_up = WARM_UP_SHARE * steps
    if step < warm_up:
        return None
    return FIRST_BETA + (LAST_BETA - FIRST_BETA) * (step - warm_up) / (steps - warm_up)


@torch.no_grad()
def squared_error(module: nn.Module, data: BlockData) -> tuple[float, float]:
    """Return `||output - target||^2` and `||target||^2` for an image, on the student's inputs, all activations quantized."""
    error, power = 0.0, 0.0
    for batch in data.in_order(IMAGES_MEASURED):
        error += float((module(batch.student_input) - batch.target).square().sum())
        power += float(batch.target.square().sum())
    count = min(len(data), IMAGES_MEASURED)
    return error / count, power / count


def relative_error(module: nn.Module, data: BlockData) -> float:
    """Return `||output - target||^2 / ||target||^2` on the student's inputs, all activations quantized."""
    error, power = squared_error(module, data)
    return error / max(power, 1e-30)


def rounded_layers(module: nn.Module) -> dict[str, QuantConv2d | QuantLinear]:
    """Return the layers whose weights are quantized, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, QuantConv2d | QuantLinear) and layer.weight_quantizer is not None
    }


def _parameter_groups(
    roundings: list[LearnedRounding], activations: list[FakeQuantizer], recipe: RecipeConfig
) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups. With `falls`, the rate decays to zero on a cosine; the rounding's is constant."""
    groups: list[dict[str, Any]] = []
    if roundings:
        groups.append({"params": [r.variable for r in roundings], "lr": recipe.reconstruct_lr, "falls": False})
    if roundings and recipe.weight_step_lr:
        groups.append({"params": [r.log_growth for r in roundings], "lr": recipe.weight_step_lr, "falls": True})
    if recipe.activation_step_lr:
        # Adam moves a number by about the learning rate, whatever its size, so the rate is relative to the quantizer's step.
        groups += [
            {"params": [q.scale], "lr": recipe.activation_step_lr * float(q.scale.detach()), "falls": True}
            for q in activations
            if isinstance(q.scale, nn.Parameter)
        ]
    return groups


@contextmanager
def _others_frozen(module: nn.Module, activations: list[FakeQuantizer]) -> Iterator[None]:
    """Disable gradients of all parameters in the block except learned activation steps. Rounding variables are added later."""
    wanted = {parameter: parameter.requires_grad for parameter in module.parameters()}
    learned = {id(quantizer.scale) for quantizer in activations}
    try:
        for parameter in wanted:
            parameter.requires_grad_(id(parameter) in learned)
        yield
    finally:
        for parameter, gradient in wanted.items():
            parameter.requires_grad_(gradient)
            parameter.grad = None
