"""The figures of a quality report, as they are printed, drawn and written as JSON. Free of torch."""

from typing import Annotated

from pydantic import Field

from clusterq_common.settings import Settings
from clusterq_common.shards.manifest import SplitName

Share = Annotated[float, Field(ge=0, le=1)]
# Two images count as near-duplicates up to this part of the typical distance: they then share 99 % of their variance. (For distances d
# around a common mean d^2 / (2 variance) is one minus the correlation.)
NEAR = 0.1
BINS = 20


class Distribution(Settings):
    """Of one figure over images.

    Attributes:
        mean, median, low, high: low and high are the 5th and 95th percentile.
        shares: of the images, in bins of equal width over [0, 1].
    """

    mean: float
    median: float
    low: float
    high: float
    shares: list[Share]


class Diversity(Settings):
    """How alike images are in one space. Distances are Euclidean; all but `typical` are in units of it.

    Attributes:
        typical: root mean square distance between two images of different classes; of pixels in levels of 255 (root mean square over
            values), of features in the teacher's own units.
        within: the same for two images of one class, mean over classes; None where no class has two.
        nearest: median over images of the distance to the nearest other image of the class.
        nearest_other: the same among as many images drawn from other classes.
    """

    typical: float
    within: float | None
    nearest: float | None
    nearest_other: float | None


class LayerDistance(Settings):
    """BatchNorm inputs against the running statistics, in running stds: root mean square over channels of the means' distance, mean
    over channels of |std / running std - 1|."""

    layer: str
    mean: float
    std: float


class Frechet(Settings):
    """Squared Frechet distance to the real images on the teacher's features, and its share of the real features' total variance."""

    squared: float
    relative: float | None


class ImageFigures(Settings):
    """What holds for all measured images of one source: the set, pure noise, or real images.

    Attributes:
        images, classes: how many, and of how many classes.
        agreement: share whose label the teacher names.
        confidence, entropy: of the teacher; entropy as a share of the most that is possible, log of the number of classes.
        clipped: share of values that are 0 or 255.
        other, other_teacher: share on which the other network names the label, and the teacher's class; None without one.
        batchnorm: by layer, in order of execution.
        pixels, features: diversity at up to 32 x 32 pixels, and in what the teacher's classifier is given.
        exact: images of which another measured one is an exact copy, in any class.
        near: share with another one of their class within a tenth of the typical distance in pixels; copies count.
            frechet: to the real images; of these themselves, between two random halves; None without any.
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
    """What holds for one class of the set; figures as in `ImageFigures`, None where there are too few images.

    Attributes:
        taken_for: the class that the teacher names most often for images whose label it contradicts; None where it contradicts none.
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
    """Two of the set's images that lie close in pixels, by their numbers in the split; distance in units of the typical one."""

    first: int
    second: int
    label: int
    distance: float


class Contradiction(Settings):
    """An image whose label the teacher contradicts, by its number in the split: what it names, and how surely."""

    number: int
    label: int
    named: int
    confidence: Share


class RealImages(Settings):
    """The real images compared with: the folder's name (not its path), its layout, how many it has, and that could not be read."""

    name: str
    layout: str
    images: int
    unreadable: int


class Quality(Settings):
    """Everything a quality report says.

    Attributes:
        shards, split, of_images: the set's digest, its split and how many images that has; `dropped` says whether its maker dropped
            images that the teacher takes for another class, None where that is not known.
        seed: of the draws.
        teacher, teacher_digest, other, other_digest: who looked.
        names: of the classes, or None; `missing`: classes of the split without an image.
        sources: "set" and "noise", and "real" where there are real images.
        per_class: of the set, by label.
        pairs: the closest, each image in one at most; contradicted: images whose label the teacher contradicts, the surest first.
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
        """`3 cat`, or the number alone."""
        return f"{label} {self.names[label]}" if self.names else str(label)
