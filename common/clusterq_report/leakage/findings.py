"""Data types of a leakage report's figures, as printed, drawn and written as JSON. Free of torch."""

from typing import Annotated

from pydantic import Field

from clusterq_common.settings import Settings
from clusterq_common.shards.manifest import SplitName
from clusterq_report.html.text import class_label

Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]
# Keys of the spaces; the last two are also those of the networks whose features they are.
PIXELS, MOVED, TEACHER, OTHER = "pixels", "moved", "teacher", "other"
# Tests are read at this level, after correction; controls more strictly, since each that fails takes power away.
LEVEL, CONTROL_LEVEL = 0.05, 0.01
PRIVATE = "This result names real images. Do not share it."


class BesideControl(Settings):
    """A figure of the set with its test, beside the same figure of held-out images in the set's place.

    Attributes:
        value, interval: the figure and its 95 % interval.
        p: one-sided p-value of the permutation test; `corrected`: for all tests of the report (Holm).
        control, control_interval: the figure of the control images.
        control_p: two-sided p-value of the control. A small one says that training and held-out images differ in this space for
            all images, not for the set's alone.
    """

    value: float
    interval: Interval
    p: Share
    corrected: Share
    control: float
    control_interval: Interval
    control_p: Share

    @property
    def neutral(self) -> bool:
        """True where the control sees no difference between training and held-out images."""
        return self.control_p > CONTROL_LEVEL

    @property
    def found(self) -> bool:
        """True where the test found something that the control does not explain."""
        return self.corrected < LEVEL and (self.neutral or self.interval[0] > self.control_interval[1])


class NearCopies(Settings):
    """Images of the set that are nearer to a training image than its distance to held-out ones explains.

    Attributes:
        count: images whose ratio of distances, nearest training over nearest held-out image, is below `limit`.
        originals: different training images that they are near to. They, not the images, are counted in the test, since images
            near to one and the same training image are no independent finds.
        limit: the calibrated limit.
        rate, rate_interval: expected share of false alarms among images like the control's, and its 95 % interval.
        expected: false alarms to be expected among the set's images.
        p: probability of as many false alarms as `originals` or more; `corrected`: for all tests of the report (Holm).
        of_held, held_originals: images that the mirrored rule, at the same rate, calls near-copies of held-out images, and the
            different held-out images that these are near to. They are false alarms.
        exact: images at distance 0 from a training image and not from a held-out one.
    """

    count: int
    originals: int
    limit: float
    rate: Share
    rate_interval: Interval
    expected: float
    p: Share
    corrected: Share
    of_held: int
    held_originals: int
    exact: int

    @property
    def found(self) -> bool:
        """True where there are more near-copies than false alarms explain."""
        return self.corrected < LEVEL and self.originals > self.held_originals


class ClassFigures(Settings):
    """Figures of one class; p-values are corrected for the number of classes. None where there are too few images."""

    label: int
    images: int
    auc: Share
    auc_interval: Interval
    auc_corrected: Share
    mean: float | None
    mean_corrected: Share | None


class Pair(Settings):
    """An image of the set, the nearest training image and the nearest held-out one.

    Attributes:
        number, label: the image's number in the split, and its label.
        train, train_name, held, held_name: numbers and names of the real images in their folders.
        distance: to the training image; for pixels in levels of 255 (root mean square over values).
        ratio: that distance over the distance to the held-out image.
        near: whether the ratio is below the calibrated limit.
    """

    number: int
    label: int
    train: int
    train_name: str
    held: int
    held_name: str
    distance: float
    ratio: float
    near: bool


class SpaceFigures(Settings):
    """Figures in one space.

    Attributes:
        name, shown: key and name of the space.
        nearness: share of the set's images whose nearest real image is a training image, an AUC; 0.5 if there is no leak.
        copies: near-copies.
        means: offset of the training from the held-out mean towards the synthetic mean, in standard deviations, mean over classes; 0 if
            there is no leak. None where no class has enough images.
        mean_classes, mean_towards: compared classes, and those whose training mean is nearer.
        by_class: figures of each class that the set has.
        pairs: the pairs with the lowest ratios.
        ratios, control_ratios: shares of the images in bins of equal width of log2(ratio), over `RATIO_RANGE`; what lies beyond is
            counted in the outermost bins.
    """

    name: str
    shown: str
    nearness: BesideControl
    copies: NearCopies
    means: BesideControl | None
    mean_classes: int
    mean_towards: int
    by_class: list[ClassFigures]
    pairs: list[Pair]
    ratios: list[Share]
    control_ratios: list[Share]

    @property
    def nearness_found(self) -> bool:
        """True where the test of nearness found something about the set."""
        return self._about_the_set(self.nearness)

    @property
    def means_found(self) -> bool:
        """True where the test of class means found something about the set."""
        return self.means is not None and self._about_the_set(self.means)

    def _about_the_set(self, compared: BesideControl) -> bool:
        # The teacher's features depend on which images it was trained on. Where its training images lie apart in them, exchanging training and
        # held-out images tests the teacher: sets that know nothing of the training images fail it, too.
        return compared.found and (compared.neutral or self.name != TEACHER)


RATIO_RANGE, RATIO_BINS = (-1.0, 1.0), 40


class Attack(Settings):
    """A membership attack: images with a high score are called training images.

    Attributes:
        model: teacher or student.
        score: loss, confidence, or likelihood ratio.
        auc, auc_interval: area under the ROC curve and its 95 % interval (DeLong); 0.5 if the score says nothing.
        caught: by the percent of held-out images that are called training images wrongly, the share of training images called so and
            its 95 % interval (bootstrap over images). Without rates that the number of held-out images cannot show.
    """

    model: str
    score: str
    auc: float | None
    auc_interval: Interval | None
    caught: dict[str, tuple[float, float, float]]


class Difference(Settings):
    """AUC of an attack on the student minus that of the same attack on the teacher, with a 95 % interval (DeLong, paired)."""

    score: str
    difference: float
    interval: Interval


class Membership(Settings):
    """Membership attacks on networks; `differences` where there is a student."""

    train: int
    held: int
    attacks: list[Attack]
    differences: list[Difference]


class RealImages(Settings):
    """Real images of one kind: the folder's name (without its path), its layout, its numbers of images, of compared ones, and of unreadable ones."""

    name: str
    layout: str
    images: int
    compared: int
    unreadable: int
    remarks: list[str]


class Leakage(Settings):
    """All results of a leakage report.

    Attributes:
        private: a warning for whoever finds the file.
        shards, split, of_images, images: digest of the set, its split, and its numbers of images and of compared ones.
        seed, permutations, draws: of the tests.
        teacher, teacher_digest, other, other_digest: the networks.
        names: names of the classes, or None.
        train, held: the real images; `control`: held-out images in the set's place, which are compared with nothing else.
        equal: training images, and held-out ones, in each draw of equally many.
        in_both: images that are both training and held-out images, by their pixels at 32 x 32.
        alone: classes with training or with held-out images only; they are left out where equally many are compared.
        spaces: figures by space.
        membership: attacks on the networks.
    """

    private: str = PRIVATE
    shards: str
    split: SplitName
    of_images: int
    images: int
    seed: int
    permutations: int
    draws: int
    teacher: str
    teacher_digest: str
    other: str | None
    other_digest: str | None
    names: list[str] | None
    train: RealImages
    held: RealImages
    control: int
    equal: int
    in_both: int
    alone: int
    spaces: list[SpaceFigures]
    membership: Membership

    def class_name(self, label: int) -> str:
        """Return a class as text, such as `3 cat`, or its number alone."""
        return class_label(label, self.names[label] if self.names else None)
