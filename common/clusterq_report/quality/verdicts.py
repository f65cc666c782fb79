"""Interpretation of a set's figures, in sentences. Free of torch.

A warning needs either a stated threshold that the 95 % interval of a class's share lies beyond, or a reference measured in the
same way. Where there is neither, the sentence gives the figure and the reference without a judgement.
"""

from collections.abc import Callable, Iterator
from statistics import median

from clusterq_common.intervals import wilson_interval
from clusterq_common.quantities import count, number
from clusterq_common.setting_names import setting_name
from clusterq_report.html.page import Level, Remark
from clusterq_report.quality.findings import NEAR, ClassFigures, Quality

# Thresholds: near-duplicates of a class (two), copies among all images, and labels of a class confirmed by the teacher.
MANY_NEAR, COLLAPSED, MANY_COPIES, FEW_SEEN = 0.1, 0.5, 0.01, 0.5
# Share of contradicted labels allowed in a set made without any: near ties may be decided differently on another machine.
ROUNDING = 0.001
# Warning below this part of the reference: nearest neighbours against other classes' (with at least so many classes and images) or
# against real images', and the other network's agreement against that on real images.
MUCH_LESS = 0.5
FEWEST_CLASSES, FEWEST_IMAGES = 3, 10
# Above this part of pure noise's figure, images are about as good as noise.
AS_NOISE = 0.9
MANY_CLIPPED = 0.1
MOST_NAMED = 5


def verdicts(quality: Quality) -> list[Remark]:
    """Return the remarks, in the order of the page."""
    parts = (_measured, _labels, _copies, _near, _alike, _diversity, _batchnorm, _certainty, _other, _frechet, _clipped)
    return [remark for part in parts for remark in part(quality)]


def _measured(quality: Quality) -> Iterator[Remark]:
    own = quality.sources["set"]
    if own.images < quality.of_images:
        seen = (own.images / quality.of_images) ** 2
        sentence = f"{own.images:,} of {quality.of_images:,} images were measured, drawn by class: of copies that come as single pairs about "
        yield Remark("plain", sentence + f"{_percent(seen)} would show. A larger {setting_name('images')} sees more.")
    if quality.missing:
        named = ", ".join(quality.class_name(label) for label in quality.missing[:MOST_NAMED])
        more = f" and {len(quality.missing) - MOST_NAMED} more" if len(quality.missing) > MOST_NAMED else ""
        yield Remark("warning", f"No image in the split {quality.split}: {named}{more}.")
    if quality.real is not None and quality.real.unreadable:
        yield Remark(
            "warning", f"{count(quality.real.unreadable, 'real image')} could not be read and left out of the figures."
        )


def _labels(quality: Quality) -> Iterator[Remark]:
    agreement = quality.sources["set"].agreement
    share = f"The teacher names the stored label on {_percent(agreement)} of the images"
    if agreement == 1:
        yield Remark("good", "The teacher names the stored label on every image.")
    elif quality.dropped and 1 - agreement > ROUNDING:
        sentence = f"{share}, but its maker says that others were dropped: labels or images were changed since."
        yield Remark("warning", sentence)
    else:
        yield Remark("plain", share + ("; the others are as close as rounding." if quality.dropped else "."))
    few = [
        class_figures
        for class_figures in quality.per_class
        if class_figures.taken_for is not None and _sure(class_figures.agreement, class_figures.images)[1] < FEW_SEEN
    ]
    for class_figures in sorted(few, key=lambda class_figures: class_figures.agreement)[:MOST_NAMED]:
        takes = quality.class_name(class_figures.taken_for or 0)
        sentence = f"The teacher names the label on {_percent(class_figures.agreement, 0)} of the {class_figures.images} images of class {quality.class_name(class_figures.label)}, less than half; "
        yield Remark("warning", sentence + f"most often it says {takes}.")
    yield from _others(len(few), "classes with fewer than half of the labels confirmed")


def _copies(quality: Quality) -> Iterator[Remark]:
    own = quality.sources["set"]
    if not own.exact:
        yield Remark("good", "No two of the images are equal.")
        return
    level: Level = "warning" if own.exact > MANY_COPIES * own.images else "plain"
    sentence = f"{own.exact:,} images ({_percent(own.exact / own.images)}) have an exact copy among the others"
    yield Remark(level, sentence + (f", more than {_percent(MANY_COPIES, 0)}." if level == "warning" else "."))


def _near(quality: Quality) -> Iterator[Remark]:
    many = sorted(
        (
            class_figures
            for class_figures in quality.per_class
            if _sure(class_figures.near, class_figures.images)[0] > MANY_NEAR
        ),
        key=lambda class_figures: -class_figures.near,
    )
    for class_figures in many[:MOST_NAMED]:
        twins = f"{_percent(class_figures.near, 0)} of the {class_figures.images} images of class {quality.class_name(class_figures.label)} are near-duplicates of another one"
        collapsed = _sure(class_figures.near, class_figures.images)[0] > COLLAPSED
        yield Remark(
            "warning", twins + (": the class has collapsed." if collapsed else f", more than {_percent(MANY_NEAR, 0)}.")
        )
    yield from _others(len(many), f"classes with more than {_percent(MANY_NEAR, 0)} near-duplicates")
    if not many and quality.per_class:
        worst = max(quality.per_class, key=lambda class_figures: class_figures.near)
        where = f"at most {_percent(worst.near, 1)} of a class's images have one (class {quality.class_name(worst.label)})"
        sentence = (
            f"Near-duplicates, closer than {NEAR:g} of the typical distance in pixels: {where if worst.near else 'none'}."
        )
        yield Remark("good", sentence)


def _alike(quality: Quality) -> Iterator[Remark]:
    """Yield warnings for classes whose images lie much closer together than those of the other classes."""
    spaces: tuple[tuple[str, Callable[[ClassFigures], float | None]], ...] = (
        ("pixels", lambda class_figures: class_figures.pixels_nearest),
        ("the teacher's features", lambda class_figures: class_figures.features_nearest),
    )
    for space, nearest in spaces:
        known = [
            (distance, class_figures)
            for class_figures in quality.per_class
            if (distance := nearest(class_figures)) is not None
            and class_figures.near <= MANY_NEAR
            and class_figures.images >= FEWEST_IMAGES
        ]
        if len(known) < FEWEST_CLASSES:
            continue
        usual = median(distance for distance, _ in known)
        close = sorted((pair for pair in known if pair[0] < MUCH_LESS * usual), key=lambda pair: pair[0])
        for distance, class_figures in close[:MOST_NAMED]:
            sentence = f"Images of class {quality.class_name(class_figures.label)} lie close together in {space}: nearest neighbours at {number(distance)} of the typical "
            yield Remark("warning", f"{sentence}distance, less than half of the other classes' {number(usual)}.")
        yield from _others(len(close), f"classes that lie close together in {space}")


def _diversity(quality: Quality) -> Iterator[Remark]:
    own, noise = quality.sources["set"].features, quality.sources["noise"].features
    if own.nearest is None or own.nearest_other is None:
        yield Remark("plain", "No class has two measured images, so nothing can be said of their diversity.")
        return
    sentence = f"In the teacher's features the nearest image of the class lies at {number(own.nearest)} of the typical distance, the nearest of as many "
    sentence += f"of other classes at {number(own.nearest_other)}"
    beside = [f"pure noise: {number(noise.nearest)} and {number(noise.nearest_other)}"]
    real = quality.sources["real"].features if "real" in quality.sources else None
    if real is not None and real.nearest is not None:
        beside.append(f"real images: {number(real.nearest)} and {number(real.nearest_other)}")
        if own.nearest < MUCH_LESS * real.nearest:
            yield Remark("warning", f"{sentence} ({'; '.join(beside)}): less than half of what real images have.")
            return
    yield Remark("plain", f"{sentence} ({'; '.join(beside)}).")


def _batchnorm(quality: Quality) -> Iterator[Remark]:
    means = {name: _average([layer.mean for layer in source.batchnorm]) for name, source in quality.sources.items()}
    worst = max(quality.sources["set"].batchnorm, key=lambda layer: layer.mean)
    beside = f"pure noise: {number(means['noise'])}" + (f"; real images: {number(means['real'])}" if "real" in means else "")
    sentence = f"BatchNorm means lie {number(means['set'])} running stds from the training data's, averaged over layers ({beside}), at most "
    sentence += f"{number(worst.mean)}, in {worst.layer}"
    off = means["set"] > AS_NOISE * means["noise"]
    yield Remark("warning" if off else "plain", sentence + ("; hardly closer than pure noise's." if off else "."))


def _certainty(quality: Quality) -> Iterator[Remark]:
    def of(name: str) -> str:
        figures = quality.sources[name]
        return f"{_percent(figures.confidence.mean, 1)} and {_percent(figures.entropy.mean, 1)}"

    beside = f"pure noise: {of('noise')}" + (f"; real images: {of('real')}" if "real" in quality.sources else "")
    sentence = f"The teacher's mean confidence and the entropy of its answers, of the most possible, are {of('set')} ({beside})"
    unsure = quality.sources["set"].entropy.mean > AS_NOISE * quality.sources["noise"].entropy.mean
    yield Remark(
        "warning" if unsure else "plain", sentence + ("; it is hardly surer of these images than of noise." if unsure else ".")
    )


def _other(quality: Quality) -> Iterator[Remark]:
    own, noise = quality.sources["set"], quality.sources["noise"]
    if own.other is None:
        return
    beside = f"pure noise: {_percent(noise.other, 1)}"
    level: Level = "plain"
    real = quality.sources.get("real")
    if real is not None and real.other is not None:
        beside += f"; real images: {_percent(real.other, 1)}"
        level = "warning" if own.other < MUCH_LESS * real.other else "plain"
    sentence = f"{quality.other}, which the images were not made for, names the label on {_percent(own.other, 1)} ({beside})"
    yield Remark(
        level,
        sentence
        + (
            "; less than half of that on real images: much of what is in them only the teacher sees."
            if level == "warning"
            else "."
        ),
    )


def _frechet(quality: Quality) -> Iterator[Remark]:
    own, noise = quality.sources["set"].frechet, quality.sources["noise"].frechet
    if own is None or noise is None or own.relative is None:
        return
    real = quality.sources["real"].frechet
    halves = "" if real is None else f"; two halves of the real images: {number(real.relative)}"
    sentence = f"The squared Frechet distance to the real images is {number(own.relative)} of their variance in the teacher's features (pure noise: "
    yield Remark("plain", f"{sentence}{number(noise.relative)}{halves}).")


def _clipped(quality: Quality) -> Iterator[Remark]:
    clipped = quality.sources["set"].clipped
    if clipped > MANY_CLIPPED:
        real = quality.sources.get("real")
        beside = f" (real images: {_percent(real.clipped, 1)})" if real else "; of photographs few do"
        yield Remark("plain", f"{_percent(clipped, 1)} of the pixel values lie at an end of the range{beside}.")


def _others(count: int, what: str) -> Iterator[Remark]:
    if count > MOST_NAMED:
        yield Remark("warning", f"{count - MOST_NAMED} more {what}: see the table of classes.")


def _average(values: list[float]) -> float:
    return sum(values) / len(values)


def _sure(share: float, images: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of this number of images."""
    low, high = wilson_interval(round(share * images), images)
    return low / 100, high / 100


def _percent(share: float | None, decimals: int = 2) -> str:
    return "–" if share is None else f"{100 * share:.{decimals}f} %"


def by_trouble(classes: list[ClassFigures]) -> list[ClassFigures]:
    """Return the classes sorted by near-duplicates and unconfirmed labels, most first."""
    return sorted(classes, key=lambda class_figures: (-class_figures.near - (1 - class_figures.agreement), class_figures.label))
