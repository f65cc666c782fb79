"""Choice of bits by layer before a fine-tuning, from synthetic images alone."""

import json
from pathlib import Path
from typing import Any

import torch

from clusterq_common.device.distributed import Ranks
from clusterq_common.device.setup import to_device
from clusterq_common.documents import read_json
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write
from clusterq_common.progress.console import info, progress
from clusterq_common.quant.bits import FLOAT
from clusterq_common.quant.choose_bits import (
    LayerChoice,
    as_result,
    average_for_size,
    average_weight_bits,
    choose_input_bits,
    choose_weight_bits,
    starting_point,
    student_bytes,
    with_choice,
)
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert
from clusterq_common.quant.sensitivity import LayerSensitivity, measure_sensitivity, passes
from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.run.run_folder import CHOSEN_BITS, CONFIG
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.trust import remember_code
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.calibration import first_pixels
from clusterq_finetune.data.network_input import to_network_input
from clusterq_finetune.data.shard_batches import ShardDataset
from clusterq_finetune.recipes.calibrated import calibrate_student
from clusterq_finetune.recipes.heldout import measure_heldout

# Averages of the weights' bits that `max_drop` chooses from: 2, 2.25, ..., 8.
AVERAGES = [2 + step / 4 for step in range(25)]
# Students that the bisection calibrates at most: one at the largest average, then half of what is left each time.
MOST_TRIED = 1 + len(AVERAGES).bit_length()


def need_choice(config: FinetuneConfig, shards: ShardSet) -> None:
    """Raise an error where bits cannot be chosen as asked.

    Raises:
        ClusterqError: the bits to choose are switched off, activations have no site at layers, or there are no held-out images.
    """
    choice, quant = config.choice, config.quant
    if choice.weights and quant.parsed_bits.weights == FLOAT:
        raise ClusterqError(
            f"{quant.bits} leaves weights in float, expected bits to choose; give for example w4a8.", setting="bits"
        )
    if choice.average_input_bits is not None and (quant.parsed_bits.activations == FLOAT or quant.activation_sites != "all"):
        raise ClusterqError(
            f"it needs quantized inputs of layers, found {quant.bits} with {setting_name('activation_sites', quant.activation_sites)}; use "
            f"w4a4 and {setting_name('activation_sites', 'all')}.",
            setting="average_input_bits",
        )
    if choice.max_drop is not None and "heldout" not in shards.manifest.splits:
        raise ClusterqError(
            f"{shards.folder} has no held-out images to estimate a drop on, expected a split `heldout`; use {setting_name('average_bits')}, "
            f"or emit shards with {setting_name('heldout_per_class')}.",
            setting="max_drop",
        )


def bits_for_run(
    config: FinetuneConfig, teacher: Teacher, shards: ShardSet, folder: Path, device: torch.device
) -> tuple[FinetuneConfig, dict[str, Any]]:
    """Choose the bits for the run in `folder`, or read what an interrupted run has chosen; `config.yaml` is written again with them.

    Raises:
        ClusterqError: see `choose_bits`; or the stored choice is not readable.
    """
    path, ranks = folder / CHOSEN_BITS, Ranks.current()
    stored = ranks.from_first(lambda: _stored(path))
    if stored is None:
        config, result = choose_bits(config, teacher, shards, device)
        changes: dict[str, Any] = {"layer_bits": list(config.quant.layer_bits), "choice": result}
        stored = ranks.from_first(lambda: changes)
    quant = QuantConfig.validated({**config.quant.model_dump(), "layer_bits": stored["layer_bits"]})
    config = config.model_copy(update={"quant": quant})

    def write() -> None:
        atomic_write(path, json.dumps(stored, indent=2) + "\n")
        config.to_yaml(folder / CONFIG)
        remember_code(folder, config.teacher)  # of the file as it is now

    ranks.from_first(write)
    return config, stored["choice"]


def _stored(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    stored = read_json(path, what="the bits that this run has chosen")
    if (
        not isinstance(stored, dict)
        or not isinstance(stored.get("layer_bits"), list)
        or not isinstance(stored.get("choice"), dict)
    ):
        raise ClusterqError(
            f"{path} holds no chosen bits, expected layer_bits and choice; start anew with {setting_name('overwrite')}."
        )
    return stored


def choose_bits(
    config: FinetuneConfig, teacher: Teacher, shards: ShardSet, device: torch.device
) -> tuple[FinetuneConfig, dict[str, Any]]:
    """Choose the bits of each layer as `config.choice` asks.

    Each layer's effect is measured with all others in float, and effects are added. Every process measures the same.

    Returns:
        The configuration with `layer_bits` filled in, and what was chosen and why, for `result.json`.

    Raises:
        ClusterqError: the aim cannot be reached.
    """
    choice, quant = config.choice, config.quant
    order = quantizable_layers(teacher.model, teacher.spec.example().to(device))
    layers = starting_point(quant, _measure(config, teacher, shards, device, order))
    if choice.weights and all(layer.weight_bits == FLOAT for layer in layers):
        raise ClusterqError(
            "it leaves the weights of all layers in float, expected bits to choose; leave some layers out of it.",
            setting="layer_bits",
        )
    result: dict[str, Any] = {"aim": choice.model_dump(mode="json", exclude_none=True)}
    if choice.average_input_bits is not None:
        layers = choose_input_bits(layers, choice.average_input_bits)
    if choice.average_bits is not None:
        layers = choose_weight_bits(layers, choice.average_bits, "average_bits")
    elif choice.target_size is not None:
        allowed = average_for_size(teacher.model, layers, quant, choice)
        layers = choose_weight_bits(layers, allowed, "target_size")
    elif choice.max_drop is not None:
        layers, result["tried"] = _smallest(layers, config, teacher, shards, device)
    average = average_weight_bits(layers)
    result["average_weight_bits"] = None if average is None else round(average, 4)
    result["bytes"] = student_bytes(teacher.model, layers, quant)
    result["layers"] = as_result(layers)
    info(f"bits chosen: weights {_bits_text(average, layers)}, {result['bytes']} bytes with scales and float parameters")
    return config.model_copy(update={"quant": with_choice(quant, layers)}), result


def _bits_text(average: float | None, layers: list[LayerChoice]) -> str:
    """Return the weights' bits in words, with the fewest and the most of a quantized layer."""
    if average is None:
        return "in float"
    chosen = sorted({layer.weight_bits for layer in layers} - {FLOAT})
    return f"{average:.2f} on average ({chosen[0]} to {chosen[-1]})"


def _measure(
    config: FinetuneConfig, teacher: Teacher, shards: ShardSet, device: torch.device, order: list[str]
) -> list[LayerSensitivity]:
    choice, recipe = config.choice, config.recipe
    pixels = first_pixels(shards, config, choice.sensitivity_images)
    batches = [to_network_input(part, teacher.spec, recipe.low_pass).to(device) for part in pixels.split(recipe.batch_size)]
    what = {"weights": choice.weights, "inputs": choice.average_input_bits is not None}
    with progress("measuring layers", passes(len(order), **what), images=len(pixels), phase="choice of bits") as ticker:
        return measure_sensitivity(
            teacher.model, order, batches, config.quant, seed=config.runtime.seed, advance=ticker.advance, **what
        )


def _smallest(
    layers: list[LayerChoice], config: FinetuneConfig, teacher: Teacher, shards: ShardSet, device: torch.device
) -> tuple[list[LayerChoice], list[dict[str, float]]]:
    """Find the smallest average whose calibrated student keeps to `max_drop`, by bisection; return its layers, and all that was tried."""
    limit = config.choice.max_drop
    assert limit is not None
    tried: list[dict[str, float]] = []
    heldout = ShardDataset(shards, "heldout")

    def estimate(average: float) -> tuple[list[LayerChoice], float]:
        found = choose_weight_bits(layers, average, "max_drop")
        candidate = config.model_copy(update={"quant": with_choice(config.quant, found)})
        student = convert(teacher.model, candidate.quant, teacher.spec.example()).eval()
        calibrate_student(student, teacher, shards, candidate, device, phase="choice of bits")
        to_device(student, device)
        drop = 100 * (1 - measure_heldout(student, heldout, teacher, candidate, device)["heldout/agreement"])
        size = student_bytes(teacher.model, found, config.quant)
        tried.append({"average_bits": average, "bytes": size, "estimated_drop": round(drop, 3)})
        info(f"weights at {average:g} bits on average, {size} bytes: an estimated {drop:.2f} points lost before training")
        return found, drop

    averages = _reachable(layers)
    best, drop = estimate(averages[-1])
    if drop > limit:
        raise ClusterqError(
            f"even at {averages[-1]:g} bits of weights the student loses an estimated {drop:.2f} points, expected at most {limit:g}; give "
            f"inputs more bits ({_more_inputs(config)}), or allow a larger drop.",
            setting="max_drop",
        )
    low, high = -1, len(averages) - 1
    while high - low > 1:
        middle = (low + high) // 2
        found, drop = estimate(averages[middle])
        if drop <= limit:
            best, high = found, middle
        else:
            low = middle
    return best, tried


def _reachable(layers: list[LayerChoice]) -> list[float]:
    """Return the averages that layers with given bits allow, rising."""
    counted = [layer for layer in layers if layer.weight_bits != FLOAT]
    weights = sum(layer.weights for layer in counted)
    least = sum(layer.weights * (layer.weight_bits if layer.fixed else 2) for layer in counted) / weights
    return [average for average in AVERAGES if average >= least] or [least]


def _more_inputs(config: FinetuneConfig) -> str:
    widths = config.quant.parsed_bits
    return "they have 8 at most" if widths.activations >= 8 else setting_name("bits", f"w{widths.weights}a8")
