"""Dry run: description of a run before anything is written. It takes the place of the run's first lines, and adds what the classifier decides."""

import torch

from clusterq_common.quant.convert import convert
from clusterq_common.quantities import size
from clusterq_common.taps import batchnorm_layers
from clusterq_common.teacher.load import Teacher
from clusterq_gen.bank.config import is_bank
from clusterq_gen.bank.layout import BankLayout
from clusterq_gen.config import GenConfig
from clusterq_gen.networks.generator import build_generator
from clusterq_gen.settings_lines import images_of, phases_of, steps_of
from clusterq_gen.training.latent import classes_in_batch


def describe_plan(config: GenConfig, teacher: Teacher, device: torch.device) -> list[str]:
    """Return the plan as lines: shapes, quantized layers, method, steps, images, phases and disk.

    Runs one image through generator and teacher.
    """
    first = f"teacher: {config.teacher.arch}, {teacher.digest[:19]}, {len(batchnorm_layers(teacher.model))} BatchNorm layers"
    lines = _bank_lines(config, teacher, device) if is_bank(config.method.method) else _generator_lines(config, teacher, device)
    return [first, *lines]


def _bank_lines(config: GenConfig, teacher: Teacher, device: torch.device) -> list[str]:
    spec, layout = teacher.spec, BankLayout.of(config, teacher.spec.num_classes)
    made_for = f"{layout.classes} classes in each" if layout.classes else "labelled by the teacher's own answer"
    steps = f"{config.bank.bank_steps} for each batch, {layout.batches * config.bank.bank_steps:,} in all"
    return [
        f"shapes: image {spec.shape} -> logits ({spec.num_classes},)",
        f"bank: {layout.batches} batches of {layout.batch_size} images, {made_for}",
        f"{_method(config, device)}; student {config.quant.bits}",
        f"steps: {steps}",
        *_images_and_phases(config),
        f"disk: {size(layout.batches * layout.batch_size * spec.raw_bytes)} of bank; {_shards(config, teacher)}",
    ]


def _generator_lines(config: GenConfig, teacher: Teacher, device: torch.device) -> list[str]:
    spec, train = teacher.spec, config.train
    generator = build_generator(config.generator, spec).to(device).eval()
    with torch.no_grad():
        image = generator(
            torch.zeros(1, config.generator.latent_size, device=device), torch.zeros(1, dtype=torch.long, device=device)
        )
        logits = teacher.model(image)
    weights = sum(parameter.numel() for parameter in generator.parameters())
    lines = [
        f"shapes: z (N, {config.generator.latent_size}) -> image {tuple(image.shape[1:])} -> logits {tuple(logits.shape[1:])}",
        f"generator: {type(generator).__name__}, {weights:,} parameters",
    ]
    convert(teacher.model, config.quant, image, lines.append, search=False)
    per_batch = classes_in_batch(spec.num_classes, train.batch_size, train.classes_per_batch)
    checkpoint = 3 * 4 * weights + 2 * 4 * sum(parameter.numel() for parameter in teacher.model.parameters())
    return [
        *lines,
        _method(config, device),
        f"steps: {steps_of(config)} of {per_batch} classes",
        *_images_and_phases(config),
        f"disk: {_shards(config, teacher)}; checkpoint about {size(checkpoint)}",
    ]


def _method(config: GenConfig, device: torch.device) -> str:
    return f"method: {config.method.method}, preset {config.preset}, on {device}"


def _images_and_phases(config: GenConfig) -> list[str]:
    at_a_time = f", {config.emit.refine_batch} at a time" if config.emit.refine_steps else ""
    return [f"images: {images_of(config)}{at_a_time}", f"phases: {phases_of(config)}"]


def _shards(config: GenConfig, teacher: Teacher) -> str:
    """Return the largest size of the shards. The numbers of images are those wanted: where the teacher rejects some, more are drawn."""
    spec = teacher.spec
    images = sum(config.emit.wanted(spec.num_classes).values()) * spec.num_classes
    # PNG of generated images compresses little; logits and tar headers come on top.
    return f"at most {size(images * (spec.raw_bytes + 2 * spec.num_classes + 4 * 1024))} of shards"
