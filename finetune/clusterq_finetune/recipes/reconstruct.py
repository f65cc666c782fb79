"""Reconstruction: the student's blocks are trained one after the other to reproduce the float network's blocks.

It learns the rounding of weights (AdaRound: Nagel et al., 2020) over blocks (BRECQ: Li et al., 2021). Quantization of
activations is dropped at random (QDrop: Wei et al., 2022), and the weights' steps are learned, too (Genie: Jeon et al., 2023).
"""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.device.cuda_graph import Recorder, cuda_recorder
from clusterq_common.device.distributed import Ranks
from clusterq_common.device.reduce import broadcast
from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import info, progress
from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.quantities import size
from clusterq_common.run.checkpoint import load_checkpoint, restoring, save_checkpoint
from clusterq_common.run.run_folder import CHECKPOINT
from clusterq_common.setting_names import in_a_command, setting_name
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.recipes.block_data import BlockData
from clusterq_finetune.recipes.block_steps import reconstruct_block, relative_error
from clusterq_finetune.recipes.blocks import Block, find_blocks
from clusterq_finetune.recipes.correct import correct_channels, restore_channels

RECONSTRUCTED = str(Path(CHECKPOINT).with_name("reconstructed.pt"))


def reconstruct(
    student: nn.Module,
    teacher: Teacher,
    pixels: Tensor,
    config: FinetuneConfig,
    folder: Path | None,
    device: torch.device,
    *,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Learn the weights' rounding in place, block by block; float32 throughout.

    With `resume`, it continues after the last finished block, with the same result as without the interruption. Several processes
    do the same work on the same images; the first one's student is used, and it writes. A block whose error increases, on its own
    images with everything quantized, is left unchanged.

    Args:
        student: calibrated.
        teacher: the float network.
        pixels: (N, C, H, W) uint8, synthetic images.
        config: configuration of the run.
        folder: folder of the run; a checkpoint is written to it after each block. None: nothing is written.
        device: device of both networks.

    Returns:
        For each block its name and `||student - teacher||^2 / ||teacher||^2` of its output, before and after.

    Raises:
        ClusterqError: a block's error is no longer finite. Or there is no device for `cuda_graphs`.
    """
    recipe, ranks = config.recipe, Ranks.current()
    recorder = cuda_recorder(device) if recipe.cuda_graphs else None
    student.eval()
    spec = teacher.spec
    example = torch.zeros(1, *spec.shape, device=device)
    assert recipe.reconstruct != "none"
    blocks, left = find_blocks(teacher.model, quantizable_layers(teacher.model, example), example, recipe.reconstruct)
    if left:
        info(f"rounded to nearest, since they are no function of one tensor that runs once: {', '.join(left)}")
    done: list[dict[str, Any]] = []
    if resume and folder is not None and (folder / RECONSTRUCTED).is_file():
        state = load_checkpoint(folder / RECONSTRUCTED, device)
        with restoring(folder / RECONSTRUCTED):
            student.load_state_dict(state["student"])
            done = state["blocks"]
    ranks.wait()
    steps, images = recipe.reconstruct_steps, recipe.reconstruct_batch_size
    with progress(
        "reconstructing", len(blocks) * steps, done=len(done) * steps, images=images, phase="reconstruction"
    ) as ticker:
        for number, block in enumerate(blocks[len(done) :], start=len(done)):
            limit = recipe.reconstruct_gigabytes * 1e9
            data = BlockData(teacher.model, student, block, pixels, spec, device, limit, low_pass=recipe.low_pass)
            done.append(_one_block(student, block, number, data, config, ticker.advance, recorder))
            del data
            if ranks.first and folder is not None:
                save_checkpoint(folder / RECONSTRUCTED, {"blocks": done, "student": student.state_dict()})
    broadcast(student)
    ranks.wait()
    return done


def _one_block(
    student: nn.Module,
    block: Block,
    number: int,
    data: BlockData,
    config: FinetuneConfig,
    advance: Callable[..., None],
    recorder: Recorder | None,
) -> dict[str, Any]:
    """Reconstruct a block, the `number`-th from 0 on, and return its record; `advance` is told of each step."""
    module, recipe, begin = block.of(student), config.recipe, time.monotonic()
    stored = f"{size(data.bytes)} {'held' if data.held else 'computed again for each batch'}"
    before, at_first = relative_error(module, data), copy.deepcopy(module.state_dict())
    if recipe.batchnorm == "corrected":
        # The learned rounding starts at weights that are still unrounded.
        restore_channels(module, block.of(data.teacher))
    for step in reconstruct_block(module, data, recipe, config.runtime.seed, number, recorder):
        advance(note=f"{block}: error {before:.4f} before, {stored}, step {step}")
    if recipe.batchnorm == "corrected":
        correct_channels(
            module, block.of(data.teacher), ((batch.float_input, batch.student_input) for batch in data.in_order())
        )
    after = relative_error(module, data)
    if not math.isfinite(after):
        restart = in_a_command(f" with {setting_name('overwrite')}")
        raise ClusterqError(
            f"the reconstruction error of {block} became {after}, expected a finite number; try a smaller {setting_name('reconstruct_lr')} or "
            f"{setting_name('weight_step_lr')}{restart}."
        )
    note = ""
    if after > before:
        # This happens with tiny layers, and with any layer in too few steps.
        module.load_state_dict(at_first)
        after, note = before, f", left rounded to nearest: it came out at {after:.4f}"
    info(f"{block}: error {before:.4f} -> {after:.4f} in {time.monotonic() - begin:.0f} s{note}")
    return {"block": str(block), "before": before, "after": after}
