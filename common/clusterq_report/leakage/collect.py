"""Collection of what is kept of each image: two readings, the second in the order of the images' pixels."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clusterq_common.capture import classifier_input
from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec
from clusterq_report.leakage.spaces import Images
from clusterq_report.measure.measuring_batch import measuring_batch
from clusterq_report.quality.collect import small_pixels

# Numbers of images in their source -> pixels (N, C, H, W) uint8, labels (N,) int64 and numbers of those that can be read.
Read = Callable[[list[int]], tuple[Tensor, Tensor, list[int]]]


@dataclass(frozen=True)
class Source:
    """Images to collect.

    Attributes:
        read: reads some of them.
        numbers: which images.
        setting: the setting that named them.
        fewest: how many of them must be readable.
    """

    read: Read
    numbers: list[int]
    setting: str
    fewest: int


@dataclass(frozen=True)
class Networks:
    """Networks that images go through.

    Attributes:
        spec: the teacher's input.
        device: where the networks are.
        featured: by name, networks whose features and answers are kept.
        judged: by name, networks whose answers alone are kept; they take what the teacher takes.
    """

    spec: InputSpec
    device: torch.device
    featured: Mapping[str, Teacher] = field(default_factory=dict)
    judged: Mapping[str, nn.Module] = field(default_factory=dict)


@torch.no_grad()
def collect(source: Source, networks: Networks, advance: Callable[[int], None] = lambda _: None) -> Images:
    """Run images through the networks, in eval mode and float32, sorted by their pixels.

    Sums in a network round differently in another batch. So images are read once to sort them, and once more in that order: how
    files are named or ordered changes no figure. About P + 4 D bytes are kept for each image, P its values at 32 x 32 pixels.

    Args:
        source: the images.
        networks: what they go through.
        advance: called with the number of images of each batch; each image counts twice.

    Raises:
        ClusterqError: too few images can be read.
    """
    size = measuring_batch(networks.spec)
    ordered = _sorted_by_pixels(source, size, advance)
    if len(ordered) < source.fewest:
        raise ClusterqError(
            f"{len(ordered)} of {len(source.numbers)} images can be read, expected {source.fewest} or more; check the folder.",
            setting=source.setting,
        )
    kept = _Kept()
    with torch.autocast(networks.device.type, enabled=False):
        for start in range(0, len(ordered), size):
            stored, labels, there = source.read(ordered[start : start + size])
            pixels, own = stored.to(networks.device), labels.to(networks.device)
            for name, network in networks.featured.items():
                with classifier_input(network.model.eval()) as features:
                    logits = network.model(_taken(pixels, network.spec))
                    kept.add("features", name, features.latest.float())
                kept.add_answers(name, logits, own)
            for name, model in networks.judged.items():
                kept.add_answers(name, model.eval()(_taken(pixels, networks.spec)), own)
            for kind, values in (("labels", labels), ("numbers", torch.tensor(there)), ("small", small_pixels(pixels))):
                kept.add(kind, "", values)
            advance(len(there))
    return kept.images()


def _sorted_by_pixels(source: Source, size: int, advance: Callable[[int], None]) -> list[int]:
    """Return the numbers of the readable images in the order of the digests of their pixels and labels."""
    digests: list[tuple[bytes, int]] = []
    for start in range(0, len(source.numbers), size):
        pixels, labels, there = source.read(source.numbers[start : start + size])
        for image, label, number in zip(pixels.contiguous(), labels.tolist(), there, strict=True):
            content = image.numpy().tobytes() + f" {label}".encode()
            digests.append((hashlib.blake2b(content, digest_size=16).digest(), number))
        advance(min(size, len(source.numbers) - start))
    return [number for _, number in sorted(digests)]


class _Kept:
    """Parts of all batches by kind and network, "" for what no network gives."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], list[Tensor]] = {}

    def add(self, kind: str, network: str, values: Tensor) -> None:
        self._parts.setdefault((kind, network), []).append(values.cpu())

    def add_answers(self, network: str, logits: Tensor, labels: Tensor) -> None:
        self.add("margins", network, margin(logits, labels))
        self.add("confidences", network, margin(logits, logits.argmax(1)))

    def images(self) -> Images:
        joined = {key: torch.cat(parts) for key, parts in self._parts.items()}

        def by_network(kind: str) -> dict[str, Tensor]:
            return {network: values for (of, network), values in joined.items() if of == kind}

        return Images(
            joined["numbers", ""],
            joined["labels", ""],
            joined["small", ""],
            by_network("features"),
            by_network("margins"),
            by_network("confidences"),
        )


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the labels' softmax probabilities p, (N,) float64: exact even where p rounds to 1.

    Args:
        logits: (N, K), K at least two.
        labels: (N,) int64.
    """
    exact = logits.double()
    others = exact.scatter(1, labels[:, None], -torch.inf)
    return exact.gather(1, labels[:, None])[:, 0] - others.logsumexp(1)


def _taken(pixels: Tensor, spec: InputSpec) -> Tensor:
    return normalise(pixels, spec).contiguous(memory_format=torch.channels_last)
