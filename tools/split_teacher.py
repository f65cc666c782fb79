"""Train a small classifier on a known part of some images, so that it is known which images it saw and which it did not.

For measuring what synthetic images give away (docs/leakage.md): `train/` and `holdout/` in the output folder are the images that it was
trained on and the others, `teacher.safetensors` are its weights.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from clusterq_common.images.normalise import normalise
from clusterq_common.run.seeding import stream
from clusterq_common.teacher.load import build_architecture
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_finetune.data.real import open_validation

DIGITS_NET = f"{Path(__file__).resolve().parent / 'demo' / 'digits_net.py'}:digits_net"
DIGITS = {"input_size": 8, "in_channels": 1, "num_classes": 10, "mean": [0.5], "std": [0.5]}


def main(arguments: list[str] | None = None) -> None:
    """Split, train, and write everything into --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="class folders of images")
    parser.add_argument("--arch", default="digits", help="pytorchcv name, or digits: the demo's (default: %(default)s)")
    parser.add_argument(
        "--per-class", type=int, required=True, help="images of each class that it is trained on; the others are held out"
    )
    parser.add_argument("--skip", type=int, default=0, help="images of each class that are neither (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="passes over them (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch (default: %(default)s)")
    parser.add_argument(
        "--augment", action="store_true", help="shift images by up to an eighth of their side; without it they are overfitted"
    )
    parser.add_argument("--seed", type=int, default=0, help="of split and training (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True)
    config = {"arch": DIGITS_NET, **DIGITS} if options.arch == "digits" else {"arch": options.arch}
    torch.manual_seed(options.seed)
    model, spec = build_architecture(TeacherConfig.validated(config))
    parts = split(options.images, spec, options.per_class, options.skip, options.seed, options.out)
    train(model, *parts["train"], spec, options)
    save_file(model.state_dict(), options.out / "teacher.safetensors")
    found = {"images": {name: len(labels) for name, (_, labels) in parts.items()}}
    found["top1"] = {name: accuracy(model, *part, spec) for name, part in parts.items()}
    print(json.dumps(found))


def split(root: Path, spec: InputSpec, per_class: int, skip: int, seed: int, out: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return pixels (N, C, H, W) uint8 and labels (N,) of both parts, and write them as PNGs in class folders."""
    images = open_validation(root, spec)
    labels = torch.tensor(images.labels)
    numbers: dict[str, list[int]] = {"train": [], "holdout": []}
    for label in labels.unique().tolist():
        own = (labels == label).nonzero()[:, 0]
        order = own[torch.randperm(len(own), generator=stream(seed, "split", label))].tolist()[skip:]
        numbers["train"] += order[:per_class]
        numbers["holdout"] += order[per_class:]
    parts = {}
    for name, chosen in numbers.items():
        batch = images.collate([images.sample(number) for number in chosen])
        if batch.unreadable:
            sys.exit(f"cannot read {batch.unreadable[0]}")
        for pixels, label, number in zip(batch.pixels, batch.labels.tolist(), chosen, strict=True):
            folder = out / name / f"{label:03}"
            folder.mkdir(parents=True, exist_ok=True)
            array = pixels.permute(1, 2, 0).numpy()
            Image.fromarray(array[:, :, 0] if spec.channels == 1 else array).save(folder / f"{number:05}.png")
        parts[name] = batch.pixels, batch.labels
    return parts


def train(model: nn.Module, pixels: Tensor, labels: Tensor, spec: InputSpec, options: argparse.Namespace) -> None:
    """Train with AdamW on a cosine; eval mode when done."""
    images = normalise(pixels, spec)
    background = normalise(torch.zeros_like(pixels[:1]), spec)
    reach = spec.longer_side // 8
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    size = min(options.batch_size, len(labels))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * (len(labels) // size))
    random = stream(options.seed, "train")
    model.train()
    for _ in range(options.epochs):
        for batch in torch.randperm(len(labels), generator=random).split(size):
            if len(batch) < size:
                break
            x = images[batch]
            if options.augment:
                down, right = (int(offset) for offset in torch.randint(-reach, reach + 1, (2,), generator=random))
                padded = F.pad(x - background, [reach] * 4)
                top, left = reach + down, reach + right
                x = padded[:, :, top : top + spec.height, left : left + spec.width] + background
            loss = F.cross_entropy(model(x), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor, spec: InputSpec) -> float:
    """Return top-1 in percent."""
    hits = [
        model(normalise(part, spec)).argmax(1) == own for part, own in zip(pixels.split(500), labels.split(500), strict=True)
    ]
    return round(100 * float(torch.cat(hits).double().mean()), 2)


if __name__ == "__main__":
    main()
