"""Page sections on accuracy: overall, by class, and confusions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clusterq_common.intervals import Interval, paired, wilson_interval
from clusterq_common.quantities import count, number, percent
from clusterq_report.charts.bars import Bars, bar_chart, interval_chart
from clusterq_report.charts.confusion_matrix import heat_map
from clusterq_report.html.blocks import Block, Figure, Folded, Heading, Paragraph, Table
from clusterq_report.html.text import class_label
from clusterq_report.run_data import RunData, pair, real, reals, section
from clusterq_report.run_predictions import Ints

MODELS = ("teacher", "calibrated", "student")
# With more classes, only the extreme ones are shown.
MOST_BARS = 32
MOST_CELLS = 40
WORST = 15


def measured(source: RunData) -> dict[str, dict[str, object]]:
    """Return the sections of result.json on models that were evaluated on real images, by the model's name."""
    return {name: section(source.result, name) for name in MODELS if real(section(source.result, name).get("top1")) is not None}


def top1(source: RunData, model: str) -> float | None:
    """Return a model's top-1 in percent, or None."""
    return real(section(source.result, model).get("top1"))


def with_interval(source: RunData, model: str) -> str:
    """Return a model's top-1 with its interval as text, such as `88.58 % (87.67 to 89.43)`."""
    ends = pair(section(source.result, model).get("top1_interval"))
    text = percent(top1(source, model))
    return text if ends is None else f"{text} ({ends[0]:.2f} to {ends[1]:.2f})"


def below_teacher(source: RunData, model: str = "student") -> Interval | None:
    """Return how many points a model is below the float teacher, paired by image, or None without predictions of two images."""
    predictions = source.predictions
    if not {"teacher", model, "label"} <= predictions.keys() or len(predictions["label"]) < 2:
        return None
    return paired((predictions["teacher"] == predictions["label"])[None], (predictions[model] == predictions["label"])[None])


def drop(source: RunData) -> list[Block]:
    """Return a figure of the points below the float teacher, each with its interval; empty without an evaluation."""
    teacher = top1(source, "teacher")
    if teacher is None:
        return []
    drops: list[tuple[str, float, tuple[float, float] | None]] = []
    for model, label in (("calibrated", "calibrated"), ("student", "fine-tuned")):
        value, apart = top1(source, model), below_teacher(source, model)
        if apart is not None:
            drops.append((label, apart.mean, (apart.low, apart.high)))
        elif value is not None:
            drops.append((label, teacher - value, None))
    if not drops:
        return []
    title = "Points of top-1 below the float teacher"
    drawn = interval_chart(drops, title=title, x_label="points below the teacher", zero_label="the float teacher")
    caption = (
        "Dots: measured on the same images. Lines: 95 % intervals, paired by image: what other images of the same kind might have given. "
        "They know nothing of other seeds. Right of the vertical line is worse than the teacher."
    )
    return [Figure(title, drawn, caption, wide=True)]


def class_names(source: RunData, count: int) -> list[str]:
    """Return class names: from the shards' manifest, else from the images' folders if each class has one, else numbers."""
    names = source.manifest.class_names if source.manifest else None
    if names and len(names) == count:
        return [class_label(label, name) for label, name in enumerate(names)]
    folders: dict[int, set[str]] = {}
    for name, label in zip(source.image_names(), source.predictions.get("label", []), strict=False):
        folders.setdefault(int(label), set()).add(name.rpartition("/")[0].rpartition("/")[2])
    return [
        class_label(label, next(iter(own)) if len(own := folders.get(label, set())) == 1 and "" not in own else None)
        for label in range(count)
    ]


def overall(source: RunData) -> list[Block]:
    """Return the table of accuracies of teacher, calibrated and fine-tuned student."""
    parts = measured(source)
    if not parts:
        return []
    heads = [
        "",
        "top-1",
        "95 % interval",
        "top-5",
        "balanced",
        "agrees with teacher",
        "calibration error",
        "images",
        "images/s",
    ]
    rows = []
    for name, part in parts.items():
        ends = pair(part.get("top1_interval"))
        interval = "–" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"
        figures = [percent(real(part.get(key))) for key in ("top5", "balanced_accuracy", "agreement", "calibration_error")]
        speed = real(part.get("images_per_second"))
        counts = [number(real(part.get("images"))), number(None if speed is None else round(speed))]
        rows.append([name, percent(real(part.get("top1"))), interval, *figures, *counts])
    return [Table(heads, rows), *two_classes(source)]


def two_classes(source: RunData) -> list[Block]:
    """Return a table of AUROC, sensitivity and specificity with their intervals; empty for more than two classes."""
    binaries = {name: binary for name, part in measured(source).items() if (binary := section(part.get("binary")))}
    if not binaries:
        return []
    heads = ["", "AUROC", "95 % interval", "sensitivity", "95 % interval", "specificity", "95 % interval"]
    rows = []
    for name, binary in binaries.items():
        row = [name]
        for key, decimals, unit in (("auroc", 4, ""), ("sensitivity", 2, " %"), ("specificity", 2, " %")):
            value, ends = real(binary.get(key)), pair(binary.get(f"{key}_interval"))
            row.append("–" if value is None else f"{value:.{decimals}f}{unit}")
            row.append("–" if ends is None else f"{ends[0]:.{decimals}f} to {ends[1]:.{decimals}f}")
        rows.append(row)
    names = class_names(source, 2)
    caption = f"Class {names[1]} is the positive one. Sensitivity is its top-1, specificity that of class {names[0]}."
    return [Heading("Two classes"), Table(heads, rows), Paragraph(caption)]


@dataclass(frozen=True)
class Loss:
    """Loss of a class from teacher to student.

    It has top-1 of both in percent, the number of images (0 where unknown), and whether the two 95 % intervals are disjoint.
    """

    label: int
    teacher: float
    student: float
    images: int
    clear: bool

    @property
    def points(self) -> float:
        return self.teacher - self.student


def losses(source: RunData) -> list[Loss]:
    """Return the loss of each class, sorted by the number of lost images, largest first."""
    teacher, student = (reals(section(source.result, name).get("per_class")) for name in ("teacher", "student"))
    if not student or len(teacher) != len(student):
        return []
    counts = np.bincount(source.predictions.get("label", np.zeros(0, np.int64)).clip(0), minlength=len(student))
    lost = []
    for label, (before, after) in enumerate(zip(teacher, student, strict=True)):
        if before is not None and after is not None:
            before_interval, after_interval = (_interval(value, int(counts[label])) for value in (before, after))
            clear = (
                before_interval is not None
                and after_interval is not None
                and (before_interval[0] > after_interval[1] or after_interval[0] > before_interval[1])
            )
            lost.append(Loss(label, before, after, int(counts[label]), clear))
    return sorted(lost, key=lambda loss: (-loss.points * max(1, loss.images), loss.label))


def by_class(source: RunData) -> list[Block]:
    """Return a figure of each class's top-1, teacher beside student; with many classes, of those that lost most."""
    lost_classes = losses(source)
    if not lost_classes:
        return []
    names = class_names(source, len(reals(section(source.result, "student").get("per_class"))))
    caption = "Thin lines: 95 % intervals; with few images of a class they are wide, and a difference may be chance."
    if len(lost_classes) > MOST_BARS:
        gained, lost = sum(loss.points < 0 for loss in lost_classes), sum(loss.points > 0 for loss in lost_classes)
        caption += f" Of {count(len(lost_classes), 'class', 'classes')} {gained} gained, {lost} lost."
        lost_classes, title = lost_classes[:WORST], f"The {WORST} classes that lost most images"
    else:
        lost_classes, title = sorted(lost_classes, key=lambda loss: loss.label), "Top-1 by class"
    groups = []
    for loss in lost_classes:
        values = [loss.teacher, loss.student]
        groups.append(Bars(names[loss.label], values, [_interval(value, loss.images) for value in values]))
    drawn = bar_chart(groups, ["teacher", "student"], title=title, x_label="top-1, percent", high=100.0, decimals=1)
    return [Figure(title, drawn, caption)]


def _interval(share: float | None, images: int) -> tuple[float, float] | None:
    return (
        None if share is None or not images or not 0 <= share <= 100 else wilson_interval(round(share * images / 100), images)
    )


def confusion(source: RunData) -> list[Block]:
    """Return the student's confusions: a heat map with few classes, and the most frequent mistakes beside the teacher's counts."""
    predictions = source.predictions
    classes = len(reals(section(source.result, "student").get("per_class")))
    if not {"label", "student"} <= predictions.keys() or not classes:
        return []
    names = class_names(source, classes)
    student = _counts(predictions["label"], predictions["student"], classes)
    teacher = (
        _counts(predictions["label"], predictions["teacher"], classes) if "teacher" in predictions else np.zeros_like(student)
    )
    blocks: list[Block] = []
    if classes <= MOST_CELLS:
        caption = (
            "Rows are true classes, columns what the student says. Blue: right; orange: mistakes, the strongest colour is the most frequent "
            "one. Point at a cell for its figures."
        )
        title = "Confusion of the student"
        blocks.append(Figure(title, heat_map(student.tolist(), names, title=title), caption))
    return blocks + _worst(student, teacher, names)


def _worst(student: Ints, teacher: Ints, names: Sequence[str]) -> list[Block]:
    wrong = student * (1 - np.eye(len(names), dtype=np.int64))
    order = [int(at) for at in np.argsort(-wrong, axis=None, kind="stable")[:WORST] if wrong.flat[at]]
    if not order:
        return []
    rows = []
    for at in order:
        label, named = divmod(at, len(names))
        total = int(student[label].sum())
        rows.append(
            [
                names[label],
                names[named],
                f"{student[label, named]}",
                f"{teacher[label, named]}",
                percent(100 * student[label, named] / total, 1),
            ]
        )
    heads = ["true class", "named", "student", "teacher", "of the class's images"]
    title, table = "The most frequent mistakes", Table(heads, rows, words=2)
    return [Folded(title, [table])] if len(names) <= MOST_CELLS else [Heading(title), table]


def _counts(labels: Ints, named: Ints, classes: int) -> Ints:
    inside = (labels >= 0) & (labels < classes) & (named >= 0) & (named < classes)
    return np.bincount(labels[inside] * classes + named[inside], minlength=classes * classes).reshape(classes, classes)
