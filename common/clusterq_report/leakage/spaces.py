"""Spaces in which images are compared, and what is kept of each image for them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from clusterq_report.leakage.findings import MOVED, OTHER, PIXELS, TEACHER

# Images are compared within a margin of this many pixels, so that one moved by as much shows the same part.
MARGIN = 1


@dataclass(frozen=True)
class Images:
    """N images of one source, sorted by their pixels, so that their order on disk changes nothing.

    Attributes:
        numbers: (N,) int64, their numbers in the source.
        labels: (N,) int64.
        small: (N, C, h, w) uint8, pixels, at most 32 on the longer side.
        features: by network (`teacher`, `other`), (N, D) float32, the input of its classifier.
        margins: by network, (N,) float64: the label's logit minus the log-sum-exp of all others, log(p / (1 - p)).
        confidences: by network, (N,) float64: the same of the class that the network prefers.
    """

    numbers: Tensor
    labels: Tensor
    small: Tensor
    features: dict[str, Tensor]
    margins: dict[str, Tensor]
    confidences: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Tensor) -> "Images":
        """Return the images at these places, in this order."""
        every = {name: values[which] for name, values in self.features.items()}
        margins = {name: values[which] for name, values in self.margins.items()}
        confidences = {name: values[which] for name, values in self.confidences.items()}
        return Images(self.numbers[which], self.labels[which], self.small[which], every, margins, confidences)


@dataclass(frozen=True)
class Space:
    """A way to compare images: Euclidean distance of vectors, at best over several versions of the first image.

    Attributes:
        name: key in the results.
        shown: name on terminal and page.
        versions: images -> the vectors (N, D) of each version.
        vectors: images -> the vectors (N, D) that these are compared with.
        whole: whether vectors are whole numbers, so that squared distances are exact in float64.
    """

    name: str
    shown: str
    versions: Callable[[Images], list[Tensor]]
    vectors: Callable[[Images], Tensor]
    whole: bool


def spaces(other: str | None) -> list[Space]:
    """Return pixels, pixels up to a shift and a reflection, the teacher's features, and those of `other`, where it is named."""
    known = [
        Space(PIXELS, "pixels", lambda images: [_flat(images)], _flat, whole=True),
        Space(MOVED, "pixels, shifted or mirrored", moved, lambda images: _inner(images.small), whole=True),
        _of_network(TEACHER, "the teacher's features"),
    ]
    return known if other is None else [*known, _of_network(OTHER, f"features of {other}")]


def moved(images: Images) -> list[Tensor]:
    """Return 18 versions: shifted by at most one pixel down and right, each also mirrored.

    Only the part within a margin of one pixel is compared, which a shifted image shows, too.
    """
    side = images.small.shape[2] - 2 * MARGIN, images.small.shape[3] - 2 * MARGIN
    shifts = [(down, right) for down in range(2 * MARGIN + 1) for right in range(2 * MARGIN + 1)]
    return [
        picture[:, :, down : down + side[0], right : right + side[1]].flatten(1)
        for picture in (images.small, images.small.flip(3))
        for down, right in shifts
    ]


def _of_network(name: str, shown: str) -> Space:
    def features(images: Images) -> Tensor:
        return images.features[name]

    return Space(name, shown, lambda images: [features(images)], features, whole=False)


def _flat(images: Images) -> Tensor:
    return images.small.flatten(1)


def _inner(small: Tensor) -> Tensor:
    return pad(small, [-MARGIN] * 4).flatten(1)
