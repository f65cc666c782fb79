"""Measure the effect of FDA and DE: class scatter of deep features and diversity within classes, with each of them on and off.

For every variant and seed a generator is trained through `clusterq-gen train` (skipped where its folder holds a finished
one, so that the whole can be interrupted), then images that the teacher agrees with are drawn and measured:

- separation: trace of the between-class over the trace of the within-class scatter of the features that enter the
  teacher's last linear layer;
- feature variance: within-class variance of those features, mean over channels;
- pixel variance: within-class variance of the pixels in [0, 1], mean over pixels;
- agreement: share of candidates on which the teacher agrees with the label.

Example: python tools/measure_alignment.py --out out-alignment --seeds 0 1 2 -- --arch resnet20_cifar10 --weights FILE \
    --preset quick --epochs 8 --steps-per-epoch 25
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from clusterq_common.capture import classifier_input
from clusterq_common.files import atomic_write
from clusterq_common.images.normalise import normalise, to_pixels
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_gen.commands import config_of_run
from clusterq_gen.emission.candidate_source import GeneratorSource

VARIANTS = {
    "neither": ["--alpha-fda", "0", "--alpha-de", "0"],
    "FDA": ["--alpha-de", "0"],
    "DE": ["--alpha-fda", "0"],
    "FDA + DE": [],
}
MEASURES = ("separation", "feature_variance", "pixel_variance", "agreement")
CHUNK = 100


def main() -> None:
    """Train what is missing, measure everything, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs and of alignment.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--candidates", type=int, default=200, help="candidates drawn for each class")
    parser.add_argument("train", nargs=argparse.REMAINDER, help="after --: arguments of clusterq-gen train")
    options = parser.parse_args()
    arguments = [argument for argument in options.train if argument != "--"]
    found: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        for variant in options.variants:
            run = options.out / f"{variant.replace(' ', '')}-seed{seed}"
            if not (run / "shards" / "manifest.json").is_file():
                command = [sys.executable, "-m", "clusterq_gen", "train", *arguments, *VARIANTS[variant]]
                command += ["--seed", str(seed), "--per-class", "20", "--out", str(run), "--overwrite"]
                subprocess.run(command, check=True)
            found.setdefault(variant, []).append(measure(run, options.candidates))
            print(variant, seed, found[variant][-1], flush=True)
    summary = {variant: {key: [row[key] for row in rows] for key in MEASURES} for variant, rows in found.items()}
    atomic_write(options.out / "alignment.json", json.dumps({"arguments": arguments, "measures": summary}, indent=2) + "\n")
    print("| variant | " + " | ".join(MEASURES) + " |\n|---|" + "---|" * len(MEASURES))
    for variant, values in summary.items():
        print(f"| {variant} | " + " | ".join(spread(values[key]) for key in MEASURES) + " |")


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{mean(values):.4g} ± {stdev(values) if len(values) > 1 else 0:.2g}"


@torch.no_grad()
def measure(run: Path, candidates: int) -> dict[str, float]:
    """The four measures of a finished run."""
    config = config_of_run(run, {})
    teacher = load_teacher(config.teacher)
    source = GeneratorSource.load(run, config, teacher.spec, config.runtime.seed, torch.device("cpu"))
    features, pixels, labels, agreed = [], [], [], 0
    for label in range(teacher.spec.num_classes):
        for start in range(0, candidates, CHUNK):
            images = source.images([(label, start + n) for n in range(min(CHUNK, candidates - start))])
            stored = to_pixels(images, teacher.spec)
            logits, deep = last_features(teacher, normalise(stored, teacher.spec))
            keep = logits.argmax(1) == label
            agreed += int(keep.sum())
            features.append(deep[keep])
            pixels.append(stored[keep].flatten(1).double() / 255)
            labels.append(torch.full((int(keep.sum()),), label))
    every_label = torch.cat(labels)
    between, within = scatter(torch.cat(features).double(), every_label)
    _, within_pixels = scatter(torch.cat(pixels), every_label)
    width, positions = features[0].shape[1], pixels[0].shape[1]
    return {
        "separation": between / within,
        "feature_variance": within / width,
        "pixel_variance": within_pixels / positions,
        "agreement": agreed / (candidates * teacher.spec.num_classes),
    }


def scatter(x: Tensor, labels: Tensor) -> tuple[float, float]:
    """Traces of the between-class and within-class scatter of x (N, D), classes weighed equally."""
    groups = [x[labels == label] for label in labels.unique()]
    centres = torch.stack([group.mean(0) for group in groups])
    between = (centres - centres.mean(0)).square().sum(1).mean()
    within = torch.stack([(group - group.mean(0)).square().sum(1).mean() for group in groups]).mean()
    return float(between), float(within)


def last_features(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the features that enter the teacher's classifier, (N, D)."""
    with classifier_input(teacher.model) as features:
        logits = teacher.model(images)
    return logits, features.latest


if __name__ == "__main__":
    main()
