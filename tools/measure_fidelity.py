"""Measure the cost of storing eight-bit pixels instead of the generator's floats: agreement, logits, fine-tuned accuracy.

The same images are taken twice, as the generator gives them and rounded to pixels, through the same calibration and fine-tuning.

    python tools/measure_fidelity.py --run out/ --per-class 512 --bits w4a4 --val cifar10/test
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clusterq_common.device.setup import to_device
from clusterq_common.images.normalise import normalise, to_pixels
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.convert import convert
from clusterq_common.run.kept import Records
from clusterq_common.shards.read import ShardSet, shard_folder
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_finetune.config import resolve
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.data.shard_batches import EpochBatches
from clusterq_finetune.evaluation.evaluate import evaluate_models
from clusterq_finetune.recipes.distill import distill
from clusterq_gen.commands import config_of_run
from clusterq_gen.config import GenConfig
from clusterq_gen.emission.candidate_source import GeneratorSource

CPU = torch.device("cpu")
CHUNK = 100


class InMemory(ShardSet):
    """Images in memory in place of shards: pixel values as floats in [0, 255], rounded or not, with the teacher's logits."""

    def __init__(self, like: ShardSet, values: Tensor, labels: list[int], logits: Tensor) -> None:
        super().__init__(like.folder, like.manifest.model_copy(update={"splits": {"train": like.manifest.splits["train"]}}))
        self.values, self.labels, self.logits = values, labels, logits

    def split(self, _: object) -> "InMemory":
        return self

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, number: int) -> tuple[np.ndarray, int, np.ndarray]:
        return self.values[number].permute(1, 2, 0).numpy(), self.labels[number], self.logits[number].numpy()


@torch.no_grad()
def draw(run: Path, teacher: Teacher, config: GenConfig, per_class: int) -> tuple[Tensor, Tensor, list[int]]:
    """Return normalised images (N, C, H, W) that the teacher agrees with, its logits on them, and their labels."""
    source = GeneratorSource.load(run, config, teacher.spec, config.runtime.seed, CPU)
    images, logits, labels = [], [], []
    for label in range(teacher.spec.num_classes):
        missing, start = per_class, 0
        while missing > 0 and start < 20 * per_class:
            batch = source.images([(label, start + n) for n in range(CHUNK)])
            out = teacher.model(batch)
            keep = (out.argmax(1) == label).nonzero().flatten()[:missing]
            images.append(batch[keep])
            logits.append(out[keep])
            labels += [label] * len(keep)
            missing -= len(keep)
            start += CHUNK
    return torch.cat(images), torch.cat(logits), labels


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=512)
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--val", type=Path, required=True)
    options = parser.parse_args()
    config = config_of_run(options.run, {})
    teacher = load_teacher(config.teacher)
    to_device(teacher.model, CPU)
    like = ShardSet.open(shard_folder(options.run))
    floats, float_logits, labels = draw(options.run, teacher, config, options.per_class)
    pixels = to_pixels(floats, teacher.spec)
    with torch.no_grad():
        pixel_logits = torch.cat([teacher.model(normalise(part, teacher.spec)) for part in pixels.split(CHUNK)])
    off = (pixel_logits - float_logits).abs()
    result: dict[str, object] = {
        "images": len(labels),
        "same_top1": float((pixel_logits.argmax(1) == float_logits.argmax(1)).float().mean()),
        "logit_difference_mean": float(off.mean()),
        "logit_difference_max": float(off.max()),
        "logit_std": float(float_logits.std()),
    }
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (teacher.spec.mean, teacher.spec.std))
    sets = {
        "floats": InMemory(like, ((floats * std + mean) * 255).clamp(0, 255), labels, float_logits),
        "pixels": InMemory(like, pixels.float(), labels, pixel_logits),
    }
    flags = {"quant": {"bits": options.bits}, "recipe": {"epochs": options.epochs}, "runtime": {"seed": options.seed}}
    finetune = resolve(flags, str(like.folder), config.teacher)
    images = open_validation(options.val, teacher.spec, geometry=known_geometry(teacher.spec.size, teacher.config.arch))
    for name, data in sets.items():
        example = torch.zeros(1, *teacher.spec.shape)
        student = convert(teacher.model, finetune.quant, example, lambda _: None).eval()
        calibrate(
            student,
            calibration(data, teacher, finetune.recipe.calibration_images, options.seed),
            finetune.quant,
            seed=options.seed,
        )
        to_device(student, CPU)
        distill(student, teacher, data, finetune, CPU, Records(), stored_logits=True)
        result[f"{name}_top1"] = evaluate_models({"student": student}, images, device=CPU)["student"].top1
    print(json.dumps(result))


def calibration(data: InMemory, teacher: Teacher, count: int, seed: int) -> Iterator[Tensor]:
    """Yield the images for calibration, chosen as the fine-tuner does."""
    order = EpochBatches(len(data), count, seed)
    order.epoch = -1
    chosen = next(iter(order))
    for start in range(0, len(chosen), CHUNK):
        yield normalise(data.values[chosen[start : start + CHUNK]], teacher.spec)


if __name__ == "__main__":
    main()
