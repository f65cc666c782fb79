"""Validate `shards leakage`: planted training images must be found, and sets without any must raise no alarm.

Real images are split at random, again and again, into training and held-out ones. (With --shards, none of them may be one that the set's
teacher saw.) Sets of pure noise, of
other real images, and (with --shards) a generated one know nothing of this split, so every alarm about them is false. Then training
images are planted in a set, as they are or altered, and the alarms are counted.
"""

import argparse
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from clusterq_common.files import atomic_write
from clusterq_common.images.normalise import to_pixels
from clusterq_common.intervals import wilson_interval
from clusterq_common.run.seeding import stream
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_finetune.data.real import open_validation
from clusterq_report.leakage.beside import Real, search_space
from clusterq_report.leakage.collect import Networks, Source, collect
from clusterq_report.leakage.config import LeakageConfig
from clusterq_report.leakage.findings import TEACHER, Leakage, SpaceFigures
from clusterq_report.leakage.measure import compare
from clusterq_report.leakage.neighbours import Neighbours
from clusterq_report.leakage.spaces import Images, Space, spaces
from clusterq_report.leakage.verdicts import leaks

NOISE_STD = 8
JPEG_QUALITY = 75
NOISE, STRANGERS, SHARDS = "pure noise", "other real images", "the set"


def main(arguments: list[str] | None = None) -> None:
    """Run, print a table, and write all figures to --out."""
    options = _options().parse_args(arguments)
    sizes = {
        name: getattr(options, name)
        for name in ("input_size", "in_channels", "num_classes", "mean", "std")
        if getattr(options, name)
    }
    teacher = load_teacher(TeacherConfig.validated({"arch": options.arch, "weights": options.weights, **sizes}))
    real = open_validation(options.images, teacher.spec)
    chosen = _of_each_class(torch.tensor(real.labels), options.real, options.seed)
    batch = real.collate([real.sample(number) for number in chosen.tolist()])
    made = None if options.shards is None else _shards(options.shards, options.set_size, options.seed)
    pool = Pool.build(batch.pixels, batch.labels, made, teacher, options.set_size, options.plantable, options.seed)
    found = validate(pool, options.draws, options.planted, options.plants, options.seed)
    for line in lines(found):
        print(line)
    atomic_write(options.out, json.dumps({"arguments": arguments, **found}, indent=1) + "\n")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="class folders of real images that the teacher never saw")
    parser.add_argument("--arch", required=True, help="a classifier of them")
    parser.add_argument("--weights", required=True)
    for name, kind in (("input-size", int), ("in-channels", int), ("num-classes", int), ("mean", str), ("std", str)):
        parser.add_argument(f"--{name}", type=kind, help="as in clusterq-gen train, for a factory of your own")
    parser.add_argument("--shards", type=Path, help="a set made for it")
    parser.add_argument("--real", type=int, default=2000, help="real images (default: %(default)s)")
    parser.add_argument("--set-size", type=int, default=500, help="images of each set (default: %(default)s)")
    parser.add_argument("--plantable", type=int, default=300, help="real images that may be planted (default: %(default)s)")
    parser.add_argument("--planted", type=int, nargs="+", default=[1, 3, 10, 30], help="training images that are planted")
    parser.add_argument("--draws", type=int, default=40, help="splits for false alarms (default: %(default)s)")
    parser.add_argument(
        "--plants", type=int, default=10, help="splits for each number of planted images (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("validate-leakage.json"))
    return parser


def alterations(seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what is done to planted images, (N, C, H, W) uint8 each way."""

    def shifted(pixels: Tensor) -> Tensor:
        return pad(pixels.float(), (1, 0, 1, 0), mode="replicate")[:, :, :-1, :-1].to(torch.uint8)

    def compressed(pixels: Tensor) -> Tensor:
        return torch.stack([_jpeg(one) for one in pixels])

    def noisy(pixels: Tensor) -> Tensor:
        noise = torch.randn(pixels.shape, generator=stream(seed, "validate noise"))
        return (pixels + NOISE_STD * noise).round().clamp(0, 255).to(torch.uint8)

    return {
        "copied": lambda pixels: pixels,
        "shifted": shifted,
        "JPEG": compressed,
        "noise": noisy,
        "mirrored": lambda pixels: pixels.flip(3),
    }


@dataclass(frozen=True)
class Pool:
    """All images of a validation and their distances, found once: splits are parts of them.

    Attributes:
        images: real images, then noise, the set, and altered real images; numbers are places.
        real: number of real images.
        starts: place of the first image of each source of sets, and of each alteration.
        plantable: places of the real images that were altered, in the same order.
        spaces: spaces in which they are compared.
        distances: by space, (all, real) float64.
        classes: K.
        set_size: images of a set.
    """

    images: Images
    real: int
    starts: dict[str, int]
    plantable: Tensor
    spaces: list[Space]
    distances: dict[str, Tensor]
    classes: int
    set_size: int

    @classmethod
    def build(
        cls,
        pixels: Tensor,
        labels: Tensor,
        made: tuple[Tensor, Tensor] | None,
        teacher: Teacher,
        set_size: int,
        plantable: int,
        seed: int,
    ) -> "Pool":
        """Run everything through the teacher and measure all distances.

        Args:
            pixels, labels: real images (N, C, H, W) uint8 and (N,).
            made: a generated set, likewise.
            teacher: a classifier of them.
            set_size: images of noise.
            plantable: number of real images to alter.
            seed: seed of the draws.
        """
        planted = torch.randperm(len(labels), generator=stream(seed, "validate plantable"))[:plantable].sort().values
        noise_labels = torch.arange(set_size) % teacher.spec.num_classes
        parts = {"real": (pixels, labels), NOISE: (_noise(set_size, teacher.spec, seed), noise_labels)}
        if made is not None:
            parts[SHARDS] = made
        for name, change in alterations(seed).items():
            parts[name] = change(pixels[planted]), labels[planted]
        starts, count = {}, 0
        for name, (_, own) in parts.items():
            starts[name], count = count, count + len(own)
        every, classes = torch.cat([one for one, _ in parts.values()]), torch.cat([one for _, one in parts.values()])
        source = Source(lambda numbers: (every[numbers], classes[numbers], numbers), list(range(count)), "images", 2)
        images = collect(source, Networks(teacher.spec, torch.device("cpu"), {TEACHER: teacher}))
        images = images.take(images.numbers.argsort())
        places = torch.arange(len(labels))
        found_in = spaces(None)
        distances = {}
        for space in found_in:
            near = search_space(space, images, images.take(places), len(labels))
            distances[space.name] = torch.empty_like(near.distances).scatter_(1, near.numbers, near.distances)
        return cls(images, len(labels), starts, planted, found_in, distances, teacher.spec.num_classes, set_size)

    def search(self, space: Space, images: Images, candidates: Images, most: int) -> Neighbours:
        """Return the nearest candidates, real images, of images of the pool."""
        part = self.distances[space.name][images.numbers][:, candidates.numbers]
        ordered, numbers = part.sort(dim=1, stable=True)
        return Neighbours(ordered[:, :most], numbers[:, :most])

    def split(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return places of training images, of held-out ones, and of the others: a quarter, a half and the rest of each class.

        Half of the held-out images serve as the control, so that as many are left as there are training images.
        """
        parts: list[list[Tensor]] = [[], [], []]
        labels = self.images.labels[: self.real]
        for label in labels.unique().tolist():
            own = (labels == label).nonzero()[:, 0]
            own = own[torch.randperm(len(own), generator=stream(seed, "validate split", label))]
            quarter = len(own) // 4
            for part, places in zip(parts, own.tensor_split([quarter, 3 * quarter]), strict=True):
                part.append(places)
        train, held, others = (torch.cat(part).sort().values for part in parts)
        return train, held, others[torch.randperm(len(others), generator=stream(seed, "validate others"))]

    def base(self, name: str, others: Tensor) -> Tensor:
        """Return the places of a set without planted images; `others` are real images that are in no other part, and may be fewer."""
        if name == STRANGERS:
            return others[: self.set_size]
        return torch.arange(self.starts[name], self.starts[name] + self.set_size)

    def measure(self, made: Tensor, train: Tensor, held: Tensor, seed: int) -> list[SpaceFigures]:
        """Return the figures of the images at these places, beside training and held-out ones."""
        config = LeakageConfig(permutations=499, calibration=len(held), seed=seed)
        take = self.images.take
        return compare(take(made), Real(take(train), take(held)), self.spaces, self.classes, config, search=self.search).spaces


def validate(pool: Pool, draws: int, planted: list[int], plants: int, seed: int) -> dict[str, Any]:
    """Count alarms.

    Args:
        pool: all images.
        draws: splits for each set without planted images.
        planted: numbers of planted images.
        plants: splits for each number and alteration.
        seed: seed of the draws.

    Returns:
        `false_alarms`: by set, its splits, those with an alarm, and alarms by test. `power`: by alteration and number, splits, those with
        an alarm, and the share of the planted images that stand among the most alike pairs of a space.
    """
    bases = [NOISE, STRANGERS, *([SHARDS] if SHARDS in pool.starts else [])]
    false_alarms: dict[str, Any] = {name: {"draws": draws, "images": 0, "alarms": 0, "by_test": {}} for name in bases}
    for draw in range(draws):
        train, held, others = pool.split(1000 * seed + draw)
        for name in bases:
            base, count = pool.base(name, others), false_alarms[name]
            named = _alarms(pool.measure(base, train, held, draw))
            count["images"] = len(base)
            count["alarms"] += bool(named)
            for one in named:
                count["by_test"][one] = count["by_test"].get(one, 0) + 1
    power: dict[str, Any] = {}
    within = bases[-1] if SHARDS in bases else NOISE
    for change in alterations(seed):
        power[change] = {number: {"draws": plants, "alarms": 0, "listed": 0.0} for number in planted}
        for draw in range(plants):
            train, held, others = pool.split(1000 * seed + draw)
            known = torch.isin(pool.plantable, train).nonzero()[:, 0]
            order = known[torch.randperm(len(known), generator=stream(seed, "validate plants", change, draw))]
            for number in planted:
                base = pool.base(within, others).clone()
                base[:number] = pool.starts[change] + order[:number]
                figures = pool.measure(base, train, held, draw)
                listed = {pair.number for space in figures for pair in space.pairs} & set(base[:number].tolist())
                power[change][number]["alarms"] += bool(_alarms(figures))
                power[change][number]["listed"] += len(listed) / number / plants
    return {"false_alarms": false_alarms, "power": power, "planted_in": within}


def lines(found: dict[str, Any]) -> list[str]:
    """Return the figures as two Markdown tables."""
    rows = ["| set | images | splits | with an alarm | 95 % | tests |", "|---|---|---|---|---|---|"]
    for name, one in found["false_alarms"].items():
        low, high = wilson_interval(one["alarms"], one["draws"])
        named = ", ".join(f"{test}: {count}" for test, count in one["by_test"].items()) or "none"
        rows.append(f"| {name} | {one['images']} | {one['draws']} | {one['alarms']} | {low:.1f} to {high:.1f} % | {named} |")
    numbers = list(next(iter(found["power"].values())))
    rows += [
        "",
        f"| planted in {found['planted_in']} | " + " | ".join(map(str, numbers)) + " |",
        "|---|" + "---|" * len(numbers),
    ]
    for change, by_number in found["power"].items():
        cells = [f"{one['alarms']} of {one['draws']}, {100 * one['listed']:.0f} % listed" for one in by_number.values()]
        rows.append(f"| {change} | " + " | ".join(cells) + " |")
    return rows


def _alarms(figures: list[SpaceFigures]) -> list[str]:
    # The verdict looks at the spaces alone.
    return leaks(Leakage.model_construct(spaces=figures))


def _noise(count: int, spec: InputSpec, seed: int) -> Tensor:
    return to_pixels(torch.randn(count, *spec.shape, generator=stream(seed, "validate set")), spec)


def _jpeg(pixels: Tensor) -> Tensor:
    array = pixels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(buffer, "JPEG", quality=JPEG_QUALITY)
    decoded = torch.frombuffer(bytearray(Image.open(buffer).tobytes()), dtype=torch.uint8)
    return decoded.view(array.shape).permute(2, 0, 1).clone()


def _of_each_class(labels: Tensor, most: int, seed: int) -> Tensor:
    """Return about `most` places, of each class as many, ascending."""
    classes = labels.unique().tolist()
    chosen = []
    for label in classes:
        own = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(own), generator=stream(seed, "validate real", label))
        chosen.append(own[order[: most // len(classes)]])
    return torch.cat(chosen).sort().values


def _shards(path: Path, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` of a set's training images, drawn by class, and their labels."""
    reader = ShardSet.open(path).split("train")
    chosen = _of_each_class(torch.tensor([reader.label(number) for number in range(len(reader))]), count, seed).tolist()
    read = [reader.read(number) for number in chosen]
    return torch.stack([torch.from_numpy(one).permute(2, 0, 1) for one, _, _ in read]), torch.tensor(
        [label for _, label, _ in read]
    )


if __name__ == "__main__":
    main()
