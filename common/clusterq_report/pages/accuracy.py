"""Parts of a page about accuracy: who is right how often, on which classes, and what is taken for what."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clusterq_common.intervals import Interval, paired, wilson_interval
from clusterq_report.charts.bars import Bars, bar_chart
from clusterq_report.charts.confusion_matrix import heat_map
from clusterq_report.html.page import figure, folded, table
from clusterq_report.html.text import number, percent, tag
from clusterq_report.run_data import Ints, Source, pair, real, reals, section

MODELS = ("teacher", "calibrated", "student")
# More classes than this are shown by their extremes.
MOST_BARS = 32
MOST_CELLS = 40
WORST = 15


def measured(source: Source) -> dict[str, dict[str, object]]:
    """The sections of result.json about models that saw real images, by the model's name."""
    return {name: section(source.result, name) for name in MODELS if real(section(source.result, name).get("top1")) is not None}


def top1(source: Source, model: str) -> float | None:
    """Percent."""
    return real(section(source.result, model).get("top1"))


def with_interval(source: Source, model: str) -> str:
    """`88.58 % (87.67 to 89.43)`."""
    ends = pair(section(source.result, model).get("top1_interval"))
    found = percent(top1(source, model))
    return found if ends is None else f"{found} ({ends[0]:.2f} to {ends[1]:.2f})"


def below_teacher(source: Source) -> Interval | None:
    """How many points the student lies below its teacher, on the same images."""
    said = source.predictions
    if not {"teacher", "student", "label"} <= said.keys() or not len(said["label"]):
        return None
    return paired((said["teacher"] == said["label"])[None], (said["student"] == said["label"])[None])


def class_names(source: Source, count: int) -> list[str]:
    """Of the shards' manifest; else the folders that the images lie in, one folder a class; else numbers."""
    names = source.manifest.class_names if source.manifest else None
    if names and len(names) == count:
        return [f"{label} {name}" for label, name in enumerate(names)]
    folders: dict[int, set[str]] = {}
    for name, label in zip(source.image_names, source.predictions.get("label", []), strict=False):
        folders.setdefault(int(label), set()).add(name.rpartition("/")[0].rpartition("/")[2])
    return [
        f"{label} {next(iter(found))}" if len(found := folders.get(label, set())) == 1 and "" not in found else str(label)
        for label in range(count)
    ]


def overall(source: Source) -> str:
    """Top-1 of teacher, calibrated and fine-tuned student."""
    parts = measured(source)
    if not parts:
        return ""
    groups = [Bars(name, [real(part.get("top1"))], [pair(part.get("top1_interval"))]) for name, part in parts.items()]
    drawn = bar_chart(
        groups, ["top-1"], title="Top-1 accuracy", x_label="top-1, percent of real images", high=100.0, decimals=2
    )
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
        said = "–" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"
        figures = [percent(real(part.get(key))) for key in ("top5", "balanced_accuracy", "agreement", "calibration_error")]
        counts = [number(real(part.get(key))) for key in ("images", "images_per_second")]
        rows.append([name, percent(real(part.get("top1"))), said, *figures, *counts])
    caption = "The thin line is the 95 % interval: what other images of the same kind might have given. It knows nothing of other seeds."
    return figure("Top-1", drawn, caption) + table(heads, rows)


@dataclass(frozen=True)
class Loss:
    """What a class lost from teacher to student: top-1 in percent, its images (0 where they are not known), and whether the 95 %
    intervals of the two lie apart."""

    label: int
    teacher: float
    student: float
    images: int
    clear: bool

    @property
    def points(self) -> float:
        return self.teacher - self.student


def losses(source: Source) -> list[Loss]:
    """Of each class, the one that lost most images first."""
    teacher, student = (reals(section(source.result, name).get("per_class")) for name in ("teacher", "student"))
    if not student or len(teacher) != len(student):
        return []
    counts = np.bincount(source.predictions.get("label", np.zeros(0, np.int64)).clip(0), minlength=len(student))
    found = []
    for label, (before, after) in enumerate(zip(teacher, student, strict=True)):
        if before is not None and after is not None:
            one, other = (_interval(value, int(counts[label])) for value in (before, after))
            clear = one is not None and other is not None and (one[0] > other[1] or other[0] > one[1])
            found.append(Loss(label, before, after, int(counts[label]), clear))
    return sorted(found, key=lambda loss: (-loss.points * max(1, loss.images), loss.label))


def by_class(source: Source) -> str:
    """Top-1 of each class, teacher beside student; of many classes those that lost most."""
    found = losses(source)
    if not found:
        return ""
    names = class_names(source, len(reals(section(source.result, "student").get("per_class"))))
    caption = "Thin lines: 95 % intervals; with few images of a class they are wide, and a difference may be chance."
    if len(found) > MOST_BARS:
        gained, lost = sum(loss.points < 0 for loss in found), sum(loss.points > 0 for loss in found)
        caption += f" Of {len(found)} classes {gained} gained, {lost} lost."
        found, title = found[:WORST], f"The {WORST} classes that lost most images"
    else:
        found, title = sorted(found, key=lambda loss: loss.label), "Top-1 by class"
    groups = []
    for loss in found:
        values = [loss.teacher, loss.student]
        groups.append(Bars(names[loss.label], values, [_interval(value, loss.images) for value in values]))
    drawn = bar_chart(groups, ["teacher", "student"], title=title, x_label="top-1, percent", high=100.0, decimals=1)
    return figure(title, drawn, caption)


def _interval(share: float | None, count: int) -> tuple[float, float] | None:
    return None if share is None or not count or not 0 <= share <= 100 else wilson_interval(round(share * count / 100), count)


def confusion(source: Source) -> str:
    """What the student takes for what: a heat map, or for many classes the most frequent mistakes; the teacher's counts beside them."""
    said = source.predictions
    classes = len(reals(section(source.result, "student").get("per_class")))
    if not {"label", "student"} <= said.keys() or not classes:
        return ""
    names = class_names(source, classes)
    student = _counts(said["label"], said["student"], classes)
    teacher = _counts(said["label"], said["teacher"], classes) if "teacher" in said else np.zeros_like(student)
    drawn = ""
    if classes <= MOST_CELLS:
        caption = (
            "Rows are true classes, columns what the student says. Blue: right; orange: mistakes, the strongest colour is the most frequent "
            "one. Point at a cell for its figures."
        )
        title = "Confusion of the student"
        drawn = figure(title, heat_map(student.tolist(), names, title=title), caption)
    return drawn + _worst(student, teacher, names)


def _worst(student: Ints, teacher: Ints, names: Sequence[str]) -> str:
    wrong = student * (1 - np.eye(len(names), dtype=np.int64))
    order = [int(at) for at in np.argsort(-wrong, axis=None, kind="stable")[:WORST] if wrong.flat[at]]
    if not order:
        return ""
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
    return (
        folded("The most frequent mistakes", table(heads, rows, words=2))
        if len(names) <= MOST_CELLS
        else tag("h3", "The most frequent mistakes") + table(heads, rows, words=2)
    )


def _counts(labels: Ints, named: Ints, classes: int) -> Ints:
    inside = (labels >= 0) & (labels < classes) & (named >= 0) & (named < classes)
    return np.bincount(labels[inside] * classes + named[inside], minlength=classes * classes).reshape(classes, classes)
