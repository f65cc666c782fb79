"""Dry run: description of a run before anything is written."""

from collections.abc import Iterator

import torch

from clusterq_common.quant.convert import convert
from clusterq_common.quantities import count, size
from clusterq_common.taps import batchnorm_layers
from clusterq_common.teacher.load import Teacher
from clusterq_gen.bank.config import is_bank
from clusterq_gen.bank.layout import BankLayout
from clusterq_gen.config import GenConfig
from clusterq_gen.networks.generator import build_generator
from clusterq_gen.training.latent import classes_in_batch


def describe_plan(config: GenConfig, teacher: Teacher, device: torch.device) -> Iterator[str]:
    """Yield the plan, one line each for shapes, quantized layers, steps and disk. Runs one image through generator and teacher."""
    yield f"teacher: {config.teacher.arch}, {teacher.digest[:19]}, {len(batchnorm_layers(teacher.model))} BatchNorm layers"
    yield from (_bank_lines if is_bank(config.method.method) else _generator_lines)(config, teacher, device)


def _bank_lines(config: GenConfig, teacher: Teacher, device: torch.device) -> list[str]:
    spec, layout = teacher.spec, BankLayout.of(config, teacher.spec.num_classes)
    images = layout.batches * layout.batch_size
    made_for = f"{layout.classes} classes in each" if layout.classes else "labelled by the teacher's own answer"
    return [
        f"shapes: image {spec.shape} -> logits ({spec.num_classes},)",
        f"bank: {layout.batches} batches of {layout.batch_size} images, {made_for}",
        f"steps: {config.bank.bank_steps} for each batch, {layout.batches * config.bank.bank_steps:,} in all; {config.method.method}, "
        f"preset {config.preset}, on {device}",
        f"disk: {size(images * spec.raw_bytes)} of bank; {_shards(config, teacher)}",
    ]


def _shards(config: GenConfig, teacher: Teacher) -> str:
    spec = teacher.spec
    images = _candidates(config, teacher)
    # PNG of generated images compresses little; logits and tar headers come on top.
    most = images * (spec.raw_bytes + 2 * spec.num_classes + 4 * 1024)
    return f"{images:,} images, at most {size(most)} of shards"


def _candidates(config: GenConfig, teacher: Teacher) -> int:
    """Return the number of images wanted. More are drawn where the teacher rejects some."""
    return sum(config.emit.wanted(teacher.spec.num_classes).values()) * teacher.spec.num_classes


def _generator_lines(config: GenConfig, teacher: Teacher, device: torch.device) -> Iterator[str]:
    spec, train = teacher.spec, config.train
    generator = build_generator(config.generator, spec).to(device).eval()
    with torch.no_grad():
        image = generator(
            torch.zeros(1, config.generator.latent_size, device=device), torch.zeros(1, dtype=torch.long, device=device)
        )
        logits = teacher.model(image)
    weights = sum(parameter.numel() for parameter in generator.parameters())
    yield f"shapes: z (N, {config.generator.latent_size}) -> image {tuple(image.shape[1:])} -> logits {tuple(logits.shape[1:])}"
    yield f"generator: {type(generator).__name__}, {weights:,} parameters"
    lines: list[str] = []
    convert(teacher.model, config.quant, image, lines.append, search=False)
    yield from lines
    per_batch = classes_in_batch(spec.num_classes, train.batch_size, train.classes_per_batch)
    yield (
        f"steps: {count(train.epochs, 'epoch')} x {train.steps_per_epoch}, {count(train.warmup_epochs, 'epoch')} of warm-up; batch {train.batch_size} "
        f"of {per_batch} classes; {config.method.method}, preset {config.preset}, on {device}"
    )
    if config.emit.refine_steps:
        yield (
            f"refinement: {config.emit.refine_steps} steps for each {config.emit.refine_batch} candidates, about {_candidates(config, teacher):,} in all"
        )
    checkpoint = 3 * 4 * weights + 2 * 4 * sum(parameter.numel() for parameter in teacher.model.parameters())
    yield f"disk: {_shards(config, teacher)}; checkpoint about {size(checkpoint)}"
