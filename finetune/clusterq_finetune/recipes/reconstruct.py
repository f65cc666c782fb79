"""The student's blocks learn, one after the other, to give what the float network's blocks give.

Weight rounding (AdaRound: Nagel et al., 2020) over blocks (BRECQ: Li et al., 2021) with quantization of activations dropped
at random (QDrop: Wei et al., 2022) and the weights' steps learned along (Genie: Jeon et al., 2023).
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.quant.convert import quantizers
from clusterq_common.quant.drop import RandomMask, dropped
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.modules import QuantConv2d, QuantLinear
from clusterq_common.quant.rounding import LearnedRounding, learned_rounding
from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.runtime.checkpoint import load_checkpoint, save_checkpoint, taking_over
from clusterq_common.runtime.distributed import Ranks
from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.progress import progress, say
from clusterq_common.runtime.reduce import broadcast
from clusterq_common.runtime.run_folder import CHECKPOINT
from clusterq_common.runtime.seeding import stream
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import FinetuneConfig, RecipeConfig
from clusterq_finetune.recipes.blocks import Block, find_blocks
from clusterq_finetune.recipes.captured import IMAGES_AT_ONCE, BlockData

RECONSTRUCTED = str(Path(CHECKPOINT).with_name("reconstructed.pt"))
# Of the steps, before the regulariser sets in; and its beta at that moment and at the end (BRECQ's values).
WARM_UP_SHARE = 0.2
FIRST_BETA, LAST_BETA = 20.0, 2.0
IMAGES_MEASURED = 256


def reconstruct(
    student: nn.Module,
    teacher: Teacher,
    pixels: Tensor,
    config: FinetuneConfig,
    folder: Path,
    device: torch.device,
    *,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Settle the weights' rounding in place, block by block; float32 throughout.

    With `resume`, go on after the last finished block; the result is the same as without the interruption. Several processes
    do the same work on the same images; the first one's student counts, and it writes. A block that comes out worse than it was,
    on its own images with everything quantized, is left as it was.

    Args:
        student: calibrated.
        teacher: the float network.
        pixels: (N, C, S, S) uint8, synthetic images.
        config: of the run.
        folder: of the run; a checkpoint is written to it after each block.
        device: where both networks are.

    Returns:
        For each block its name and `||student - teacher||^2 / ||teacher||^2` of its output, before and after.

    Raises:
        ClusterqError: a block's error is no longer finite.
    """
    recipe, ranks = config.recipe, Ranks.current()
    student.eval()
    spec = teacher.spec
    example = torch.zeros(1, spec.channels, spec.size, spec.size, device=device)
    assert recipe.reconstruct != "none"
    blocks, left = find_blocks(teacher.model, quantizable_layers(teacher.model, example), example, recipe.reconstruct)
    if left:
        say(f"rounded to nearest, since they are no function of one tensor that runs once: {', '.join(left)}")
    done: list[dict[str, Any]] = []
    if resume and (folder / RECONSTRUCTED).is_file():
        state = load_checkpoint(folder / RECONSTRUCTED, device)
        with taking_over(folder / RECONSTRUCTED):
            student.load_state_dict(state["student"])
            done = state["blocks"]
    ranks.wait()
    steps, images = recipe.reconstruct_steps, recipe.reconstruct_batch_size
    with progress("reconstructing", len(blocks) * steps, done=len(done) * steps, images=images) as ticker:
        for number, block in enumerate(blocks[len(done) :], start=len(done)):
            limit = recipe.reconstruct_gigabytes * 1e9
            data = BlockData(teacher.model, student, block, pixels, spec, device, limit, low_pass=recipe.low_pass)
            size = f"{data.bytes / 1e9:.2g} GB {'held' if data.held else 'computed again for each batch'}"
            done.append(_one_block(student, block, data, recipe, config.runtime.seed, number, size, ticker.advance))
            del data
            if ranks.first:
                save_checkpoint(folder / RECONSTRUCTED, {"blocks": done, "student": student.state_dict()})
    broadcast(student)
    ranks.wait()
    return done


def _one_block(
    student: nn.Module,
    block: Block,
    data: BlockData,
    recipe: RecipeConfig,
    seed: int,
    number: int,
    size: str,
    advance: Callable[..., None],
) -> dict[str, Any]:
    module, begin = block.of(student), time.monotonic()
    before, at_first = relative_error(module, data), copy.deepcopy(module.state_dict())
    for step in reconstruct_block(module, data, recipe, seed, number):
        advance(note=f"{block}: error {before:.4f} before, {size}, step {step}")
    after = relative_error(module, data)
    if not math.isfinite(after):
        raise ClusterqError(
            f"the reconstruction error of {block} became {after}, expected a finite number; try a smaller --reconstruct-lr or "
            "--weight-step-lr with --overwrite."
        )
    note = ""
    if after > before:
        # It happens to tiny layers, and to any in too few steps.
        module.load_state_dict(at_first)
        after, note = before, f", left rounded to nearest: it came out at {after:.4f}"
    say(f"{block}: error {before:.4f} -> {after:.4f} in {time.monotonic() - begin:.0f} s{note}")
    return {"block": str(block), "before": before, "after": after}


def reconstruct_block(module: nn.Module, data: BlockData, recipe: RecipeConfig, seed: int, number: int) -> Iterator[int]:
    """Train one block and settle its rounding at the end. Yields the number of each step done.

    Minimised is `n E / E0 + weight * sum over n weights of 1 - |2 h - 1|^beta`: E is the squared error of the output for an image, E0
    what it was with rounding to nearest. BRECQ has E alone and a weight of 0.01, which says something else for every size of
    activations and of layers. The input is the student's, each element with the drop probability the float network's.

    Args:
        module: the student's block.
        data: its inputs and targets.
        recipe: steps and rates.
        seed: of the run.
        number: of the block: another one, other draws.
    """
    first_error = max(squared_error(module, data)[0], 1e-30)
    activations = [q for name, q in quantizers(module).items() if not name.endswith("weight_quantizer")]
    mask = RandomMask(recipe.drop_probability)
    with _others_frozen(module, activations), learned_rounding(rounded_layers(module)) as roundings, dropped(activations, mask):
        groups = _parameter_groups(list(roundings.values()), activations, recipe)
        if not groups:
            return
        optimizer = torch.optim.Adam(groups)
        weights = sum(rounding.variable.numel() for rounding in roundings.values())
        first_rates = [group["lr"] for group in optimizer.param_groups]
        for step in range(recipe.reconstruct_steps):
            random = stream(seed, "reconstruct", number, step)
            indices = torch.randint(len(data), (recipe.reconstruct_batch_size,), generator=random)
            mask.random = torch.Generator(data.device).manual_seed(stream(seed, "drop", number, step).initial_seed())
            batch = data.batch(indices)
            output = module(mask.mix(batch.float_input, batch.student_input))
            loss = (output - batch.target).square().sum() * (max(weights, 1) / len(output) / first_error)
            beta = annealed_beta(step, recipe.reconstruct_steps)
            if beta is not None:
                loss = loss + recipe.rounding_weight * sum(rounding.regulariser(beta) for rounding in roundings.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for group, rate in zip(optimizer.param_groups, first_rates, strict=True):
                falling = 0.5 * (1 + math.cos(math.pi * step / recipe.reconstruct_steps))
                group["lr"] = rate * (falling if group["falls"] else 1.0)
            optimizer.step()
            yield step


def annealed_beta(step: int, steps: int) -> float | None:
    """The regulariser's exponent at a step: none during warm-up, then falling linearly."""
    warm_up = WARM_UP_SHARE * steps
    if step < warm_up:
        return None
    return FIRST_BETA + (LAST_BETA - FIRST_BETA) * (step - warm_up) / (steps - warm_up)


@torch.no_grad()
def squared_error(module: nn.Module, data: BlockData) -> tuple[float, float]:
    """`||output - target||^2` and `||target||^2` for an image, on the student's inputs, all activations quantized."""
    error, power = 0.0, 0.0
    count = min(len(data), IMAGES_MEASURED)
    for indices in torch.arange(count).split(IMAGES_AT_ONCE):
        batch = data.batch(indices)
        error += float((module(batch.student_input) - batch.target).square().sum())
        power += float(batch.target.square().sum())
    return error / count, power / count


def relative_error(module: nn.Module, data: BlockData) -> float:
    """`||output - target||^2 / ||target||^2` on the student's inputs, all activations quantized."""
    error, power = squared_error(module, data)
    return error / max(power, 1e-30)


def rounded_layers(module: nn.Module) -> dict[str, QuantConv2d | QuantLinear]:
    """The layers whose weights are quantized, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, QuantConv2d | QuantLinear) and layer.weight_quantizer is not None
    }


def _parameter_groups(
    roundings: list[LearnedRounding], activations: list[FakeQuantizer], recipe: RecipeConfig
) -> list[dict[str, Any]]:
    """For the optimizer; `falls`: the rate goes to zero on a cosine, the rounding's stays."""
    groups: list[dict[str, Any]] = []
    if roundings:
        groups.append({"params": [r.variable for r in roundings], "lr": recipe.reconstruct_lr, "falls": False})
    if roundings and recipe.weight_step_lr:
        groups.append({"params": [r.log_growth for r in roundings], "lr": recipe.weight_step_lr, "falls": True})
    if recipe.activation_step_lr:
        # Adam moves a number by about the rate, whatever its size: the rate is relative to the step.
        groups += [
            {"params": [q.scale], "lr": recipe.activation_step_lr * float(q.scale.detach()), "falls": True}
            for q in activations
            if isinstance(q.scale, nn.Parameter)
        ]
    return groups


@contextmanager
def _others_frozen(module: nn.Module, activations: list[FakeQuantizer]) -> Iterator[None]:
    """Nothing but learned activation steps wants a gradient inside; rounding variables come on top."""
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
