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


def verdicts(found: Quality) -> list[Remark]:
    """Return the remarks, in the order of the page."""
    parts = (_measured, _labels, _copies, _near, _alike, _diversity, _batchnorm, _certainty, _other, _frechet, _clipped)
    return [remark for part in parts for remark in part(found)]


def _measured(found: Quality) -> Iterator[Remark]:
    own = found.sources["set"]
    if own.images < found.of_images:
        seen = (own.images / found.of_images) ** 2
        sentence = f"{own.images:,} of {found.of_images:,} images were measured, drawn by class: of copies that come as single pairs about "
        yield Remark("plain", sentence + f"{_percent(seen)} would show. A larger {setting_name('images')} sees more.")
    if found.missing:
        named = ", ".join(found.class_name(label) for label in found.missing[:MOST_NAMED])
        more = f" and {len(found.missing) - MOST_NAMED} more" if len(found.missing) > MOST_NAMED else ""
        yield Remark("warning", f"No image in the split {found.split}: {named}{more}.")
    if found.real is not None and found.real.unreadable:
        yield Remark("warning", f"{count(found.real.unreadable, 'real image')} could not be read and left out of the figures.")


def _labels(found: Quality) -> Iterator[Remark]:
    agreement = found.sources["set"].agreement
    share = f"The teacher names the stored label on {_percent(agreement)} of the images"
    if agreement == 1:
        yield Remark("good", "The teacher names the stored label on every image.")
    elif found.dropped and 1 - agreement > ROUNDING:
        sentence = f"{share}, but its maker says that others were dropped: labels or images were changed since."
        yield Remark("warning", sentence)
    else:
        yield Remark("plain", share + ("; the others are as close as rounding." if found.dropped else "."))
    few = [one for one in found.per_class if one.taken_for is not None and _sure(one.agreement, one.images)[1] < FEW_SEEN]
    for one in sorted(few, key=lambda one: one.agreement)[:MOST_NAMED]:
        takes = found.class_name(one.taken_for or 0)
        sentence = f"The teacher names the label on {_percent(one.agreement, 0)} of the {one.images} images of class {found.class_name(one.label)}, less than half; "
        yield Remark("warning", sentence + f"most often it says {takes}.")
    yield from _others(len(few), "classes with fewer than half of the labels confirmed")


def _copies(found: Quality) -> Iterator[Remark]:
    own = found.sources["set"]
    if not own.exact:
        yield Remark("good", "No two of the images are equal.")
        return
    level: Level = "warning" if own.exact > MANY_COPIES * own.images else "plain"
    sentence = f"{own.exact:,} images ({_percent(own.exact / own.images)}) have an exact copy among the others"
    yield Remark(level, sentence + (f", more than {_percent(MANY_COPIES, 0)}." if level == "warning" else "."))


def _near(found: Quality) -> Iterator[Remark]:
    many = sorted((one for one in found.per_class if _sure(one.near, one.images)[0] > MANY_NEAR), key=lambda one: -one.near)
    for one in many[:MOST_NAMED]:
        twins = f"{_percent(one.near, 0)} of the {one.images} images of class {found.class_name(one.label)} are near-duplicates of another one"
        collapsed = _sure(one.near, one.images)[0] > COLLAPSED
        yield Remark(
            "warning", twins + (": the class has collapsed." if collapsed else f", more than {_percent(MANY_NEAR, 0)}.")
        )
    yield from _others(len(many), f"classes with more than {_percent(MANY_NEAR, 0)} near-duplicates")
    if not many and found.per_class:
        worst = max(found.per_class, key=lambda one: one.near)
        where = f"at most {_percent(worst.near, 1)} of a class's images have one (class {found.class_name(worst.label)})"
        sentence = (
            f"Near-duplicates, closer than {NEAR:g} of the typical distance in pixels: {where if worst.near else 'none'}."
        )
        yield Remark("good", sentence)


def _alike(found: Quality) -> Iterator[Remark]:
    """Yield warnings for classes whose images lie much closer together than those of the other classes."""
    spaces: tuple[tuple[str, Callable[[ClassFigures], float | None]], ...] = (
        ("pixels", lambda one: one.pixels_nearest),
        ("the teacher's features", lambda one: one.features_nearest),
    )
    for space, nearest in spaces:
        known = [
            (distance, one)
            for one in found.per_class
            if (distance := nearest(one)) is not None and one.near <= MANY_NEAR and one.images >= FEWEST_IMAGES
        ]
        if len(known) < FEWEST_CLASSES:
            continue
        usual = median(distance for distance, _ in known)
        close = sorted((pair for pair in known if pair[0] < MUCH_LESS * usual), key=lambda pair: pair[0])
        for distance, one in close[:MOST_NAMED]:
            sentence = f"Images of class {found.class_name(one.label)} lie close together in {space}: nearest neighbours at {number(distance)} of the typical "
            yield Remark("warning", f"{sentence}distance, less than half of the other classes' {number(usual)}.")
        yield from _others(len(close), f"classes that lie close together in {space}")


def _diversity(found: Quality) -> Iterator[Remark]:
    own, noise = found.sources["set"].features, found.sources["noise"].features
    if own.nearest is None or own.nearest_other is None:
        yield Remark("plain", "No class has two measured images, so nothing can be said of their diversity.")
        return
    sentence = f"In the teacher's features the nearest image of the class lies at {number(own.nearest)} of the typical distance, the nearest of as many "
    sentence += f"of other classes at {number(own.nearest_other)}"
    beside = [f"pure noise: {number(noise.nearest)} and {number(noise.nearest_other)}"]
    real = found.sources["real"].features if "real" in found.sources else None
    if real is not None and real.nearest is not None:
        beside.append(f"real images: {number(real.nearest)} and {number(real.nearest_other)}")
        if own.nearest < MUCH_LESS * real.nearest:
            yield Remark("warning", f"{sentence} ({'; '.join(beside)}): less than half of what real images have.")
            return
    yield Remark("plain", f"{sentence} ({'; '.join(beside)}).")


def _batchnorm(found: Quality) -> Iterator[Remark]:
    means = {name: _average([layer.mean for layer in one.batchnorm]) for name, one in found.sources.items()}
    worst = max(found.sources["set"].batchnorm, key=lambda layer: layer.mean)
    beside = f"pure noise: {number(means['noise'])}" + (f"; real images: {number(means['real'])}" if "real" in means else "")
    sentence = f"BatchNorm means lie {number(means['set'])} running stds from the training data's, averaged over layers ({beside}), at most "
    sentence += f"{number(worst.mean)}, in {worst.layer}"
    off = means["set"] > AS_NOISE * means["noise"]
    yield Remark("warning" if off else "plain", sentence + ("; hardly closer than pure noise's." if off else "."))


def _certainty(found: Quality) -> Iterator[Remark]:
    def of(name: str) -> str:
        figures = found.sources[name]
        return f"{_percent(figures.confidence.mean, 1)} and {_percent(figures.entropy.mean, 1)}"

    beside = f"pure noise: {of('noise')}" + (f"; real images: {of('real')}" if "real" in found.sources else "")
    sentence = f"The teacher's mean confidence and the entropy of its answers, of the most possible, are {of('set')} ({beside})"
    unsure = found.sources["set"].entropy.mean > AS_NOISE * found.sources["noise"].entropy.mean
    yield Remark(
        "warning" if unsure else "plain", sentence + ("; it is hardly surer of these images than of noise." if unsure else ".")
    )


def _other(found: Quality) -> Iterator[Remark]:
    own, noise = found.sources["set"], found.sources["noise"]
    if own.other is None:
        return
    beside = f"pure noise: {_percent(noise.other, 1)}"
    level: Level = "plain"
    real = found.sources.get("real")
    if real is not None and real.other is not None:
        beside += f"; real images: {_percent(real.other, 1)}"
        level = "warning" if own.other < MUCH_LESS * real.other else "plain"
    sentence = f"{found.other}, which the images were not made for, names the label on {_percent(own.other, 1)} ({beside})"
    yield Remark(
        level,
        sentence
        + (
            "; less than half of that on real images: much of what is in them only the teacher sees."
            if level == "warning"
            else "."
        ),
    )


def _frechet(found: Quality) -> Iterator[Remark]:
    own, noise = found.sources["set"].frechet, found.sources["noise"].frechet
    if own is None or noise is None or own.relative is None:
        return
    real = found.sources["real"].frechet
    halves = "" if real is None else f"; two halves of the real images: {number(real.relative)}"
    sentence = f"The squared Frechet distance to the real images is {number(own.relative)} of their variance in the teacher's features (pure noise: "
    yield Remark("plain", f"{sentence}{number(noise.relative)}{halves}).")


def _clipped(found: Quality) -> Iterator[Remark]:
    clipped = found.sources["set"].clipped
    if clipped > MANY_CLIPPED:
        real = found.sources.get("real")
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
    return sorted(classes, key=lambda one: (-one.near - (1 - one.agreement), one.label))
