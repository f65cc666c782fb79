"""Data types of a quality report's figures, as printed, drawn and written as JSON. Free of torch."""

from typing import Annotated

from pydantic import Field

from clusterq_common.settings import Settings
from clusterq_common.shards.manifest import SplitName
from clusterq_report.html.text import class_label

Share = Annotated[float, Field(ge=0, le=1)]
# Two images are near-duplicates up to this part of the typical distance. They then share 99 % of their variance. (For distances d
# around a common mean, d^2 / (2 variance) is one minus the correlation.)
NEAR = 0.1
BINS = 20


class Distribution(Settings):
    """Distribution of one figure over images.

    Attributes:
        mean, median, low, high: low and high are the 5th and 95th percentile.
        shares: shares of the images in bins of equal width over [0, 1].
    """

    mean: float
    median: float
    low: float
    high: float
    shares: list[Share]


class Diversity(Settings):
    """Similarity of images in one space. Distances are Euclidean; all but `typical` are in units of it.

    Attributes:
        typical: root mean square distance between two images of different classes; for pixels in levels of 255 (root mean square
            over values), for features in the teacher's own units.
        within: the same for two images of one class, mean over classes; None where no class has two.
        nearest: median over images of the distance to the nearest other image of the class.
        nearest_other: the same among equally many images drawn from other classes.
    """

    typical: float
    within: float | None
    nearest: float | None
    nearest_other: float | None


class LayerDistance(Settings):
    """Distance of BatchNorm inputs to the running statistics, in running stds.

    `mean` is the root mean square over channels of the means' distance, `std` the mean over channels of |std / running std - 1|.
    """

    layer: str
    mean: float
    std: float


class Frechet(Settings):
    """Squared Frechet distance to the real images in the teacher's features, also relative to the real features' total variance."""

    squared: float
    relative: float | None


class ImageFigures(Settings):
    """Figures over all measured images of one source: the set, pure noise, or real images.

    Attributes:
        images, classes: number of images, and of their classes.
        agreement: share of images whose label the teacher predicts.
        confidence, entropy: the teacher's; entropy as a share of its largest value, the log of the number of classes.
        clipped: share of values that are 0 or 255.
        other, other_teacher: share on which the other network predicts the label, and the teacher's class; None without one.
        batchnorm: distances by layer, in order of execution.
        pixels, features: diversity at up to 32 x 32 pixels, and of the input of the teacher's classifier.
        exact: number of images with an exact copy among the measured ones, in any class.
        near: share with another image of the class within a tenth of the typical distance in pixels; copies count.
        frechet: distance to the real images; for the real images, between two random halves; None without real images.
    """

    images: int
    classes: int
    agreement: Share
    confidence: Distribution
    entropy: Distribution
    clipped: Share
    other: Share | None
    other_teacher: Share | None
    batchnorm: list[LayerDistance]
    pixels: Diversity
    features: Diversity
    exact: int
    near: Share
    frechet: Frechet | None = None


class ClassFigures(Settings):
    """Figures of one class of the set, as in `ImageFigures`; None where there are too few images.

    Attributes:
        taken_for: the class that the teacher predicts most often for images whose label it contradicts; None without such images.
    """

    label: int
    images: int
    agreement: Share
    taken_for: int | None
    confidence: Share
    entropy: Share
    clipped: Share
    other: Share | None
    exact: int
    near: Share
    pixels_nearest: float | None
    features_nearest: float | None
    features_nearest_other: float | None
    features_within: float | None


class Pair(Settings):
    """Two images of the set that are close in pixels, by their numbers in the split; distance in units of the typical one."""

    first: int
    second: int
    label: int
    distance: float


class Contradiction(Settings):
    """An image whose label the teacher contradicts, by its number in the split, with the predicted class and its confidence."""

    number: int
    label: int
    named: int
    confidence: Share


class RealImages(Settings):
    """Real images for comparison: the folder's name (without its path), its layout, its number of images and of unreadable ones."""

    name: str
    layout: str
    images: int
    unreadable: int


class Quality(Settings):
    """All results of a quality report.

    Attributes:
        shards, split, of_images: digest of the set, its split and the number of images in it. `dropped` says whether the set was
            made without images that the teacher assigns to another class; None where that is not known.
        seed: seed of the draws.
        teacher, teacher_digest, other, other_digest: the measuring networks.
        names: names of the classes, or None; `missing`: classes of the split without an image.
        sources: "set" and "noise", and "real" where there are real images.
        per_class: figures of the set by class, in order of the labels.
        pairs: the closest pairs, each image in one at most; contradicted: images whose label the teacher contradicts, by
            confidence.
    """

    shards: str
    split: SplitName
    of_images: int
    dropped: bool | None
    seed: int
    teacher: str
    teacher_digest: str
    other: str | None
    other_digest: str | None
    names: list[str] | None
    missing: list[int]
    real: RealImages | None
    sources: dict[str, ImageFigures]
    per_class: list[ClassFigures]
    pairs: list[Pair]
    contradicted: list[Contradiction]

    def class_name(self, label: int) -> str:
        """Return a class as text, such as `3 cat`, or its number alone."""
        return class_label(label, self.names[label] if self.names else None)
