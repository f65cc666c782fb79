"""quality.html: figures and images of a quality report. Free of torch."""

from collections.abc import Callable, Sequence

from clusterq_common.quantities import count, number, percent
from clusterq_common.shards.read import ShardSet
from clusterq_report.charts.bars import Bars, bar_chart
from clusterq_report.charts.lines import Line, line_chart
from clusterq_report.html.blocks import Block, Figure, Folded, Paragraph, Table
from clusterq_report.html.gallery import gallery
from clusterq_report.html.page import Report, Section
from clusterq_report.quality.findings import BINS, NEAR, ClassFigures, Distribution, ImageFigures, Quality
from clusterq_report.quality.pictures import closest_pairs, contradicted
from clusterq_report.quality.summary import COLUMNS, summary_rows
from clusterq_report.quality.verdicts import by_trouble, verdicts

# With more classes, only those with the most problems are shown.
MOST_BARS, WORST = 40, 20
# Largest number of rows of the table of classes.
MOST_ROWS = 1000
GUIDE = "docs/shard-quality.md"


def quality_page(found: Quality, shards: ShardSet) -> Report:
    """Return the page of a set.

    Raises:
        ClusterqError: an image that it shows cannot be read.
    """
    own = found.sources["set"]
    tiles = {
        "Teacher": found.teacher,
        "Images measured": f"{own.images:,} of {found.of_images:,}",
        "Teacher names the label": percent(100 * own.agreement),
        "Mean confidence": percent(100 * own.confidence.mean, 1),
        "Exact copies": f"{own.exact:,}",
        "Near-duplicates": percent(100 * own.near),
    }
    if own.other is not None:
        tiles[f"{found.other} names the label"] = percent(100 * own.other)
    if own.frechet is not None:
        tiles["Frechet distance, of real variance"] = number(own.frechet.relative)
    heads, rows = summary_rows(found)
    sections = [
        Section("figures", "The figures and their references", [Paragraph(_about(found)), Table(heads, rows)], opened=True),
        Section("images", "Images", gallery(shards, found.split), opened=True),
        Section(
            "teacher", "What the teacher makes of them", [*_certainty(found), *_agreement(found), *contradicted(found, shards)]
        ),
        Section("network", "Inside the teacher", _batchnorm(found)),
        Section("diversity", "Diversity", _diversity(found)),
        Section("duplicates", "Duplicates", [*_near(found), *closest_pairs(found, shards)]),
        Section("classes", "Every class", _classes(found)),
        Section("origins", "Origins", [Table(["what", "value"], _origins(found), words=2)]),
    ]
    beside = (
        f"{found.sources['real'].images:,} real images and pure noise" if found.real else "pure noise, without one real image"
    )
    lead = f"{own.images:,} synthetic images made for {found.teacher}, measured beside {beside}."
    return Report(f"Quality of synthetic images for {found.teacher}", lead, tiles, verdicts(found), sections, guide=GUIDE)


def _about(found: Quality) -> str:
    explanation = (
        "Pure noise: as many images without any content, each value drawn with the mean and std of the teacher's normalisation."
    )
    if found.real is not None:
        explanation += f" Real images: {found.sources['real'].images:,} of {found.real.images:,} in {found.real.name} ({found.real.layout})."
    return (
        explanation
        + " Distances within a row of pixels or features are in units of the typical distance of the column's own images."
    )


def _certainty(found: Quality) -> list[Block]:
    def drawn(title: str, x_label: str, of: Callable[[ImageFigures], Distribution], caption: str) -> Figure:
        middles = [100 * (place + 0.5) / BINS for place in range(BINS)]
        lines = [
            Line(COLUMNS[name], [(x, 100 * share) for x, share in zip(middles, of(one).shares, strict=True)])
            for name, one in found.sources.items()
        ]
        chart = line_chart(lines, title=title, x_label=x_label, y_label="percent of images", x_range=(0, 100))
        return Figure(title, chart, caption)

    bins = f"Shares of images in {BINS} bins of equal width."
    return [
        drawn(
            "The teacher's confidence",
            "confidence in its first class, percent",
            lambda one: one.confidence,
            f"{bins} Images of which the teacher is as sure as of real ones carry its classes; all of them at the right end are easy ones.",
        ),
        drawn(
            "Entropy of the teacher's answer",
            "entropy, percent of the most possible",
            lambda one: one.entropy,
            f"{bins} 0: one class alone; 100: all classes alike.",
        ),
    ]


def _agreement(found: Quality) -> list[Block]:
    if found.sources["set"].agreement == 1 and found.other is None:
        return [Paragraph("The teacher names the stored label on every image of every class.")]
    names = ["teacher", *([found.other] if found.other else [])]
    groups, caption = _of_classes(
        found,
        lambda one: [100 * one.agreement, *([] if one.other is None else [100 * one.other])],
        lambda one: one.agreement if one.other is None else one.other,
    )
    chart = bar_chart(groups, names, title="Labels confirmed", x_label="percent of a class's images", high=100.0, decimals=1)
    return [Figure("Labels confirmed, by class", chart, "Share of images of which a network names the stored label." + caption)]


def _batchnorm(found: Quality) -> list[Block]:
    names = [layer.layer for layer in found.sources["set"].batchnorm]
    places = {float(n): f"{n} {name}" for n, name in enumerate(names, start=1)}
    blocks: list[Block] = []
    for key, title, caption in (
        ("mean", "Distance of BatchNorm means", "Root mean square over channels of (mean - running mean) / running std."),
        ("std", "Distance of BatchNorm stds", "Mean over channels of |std / running std - 1|."),
    ):
        lines = [
            Line(COLUMNS[name], [(n, getattr(layer, key)) for n, layer in enumerate(one.batchnorm, start=1)])
            for name, one in found.sources.items()
        ]
        chart = line_chart(
            lines, title=title, x_label="BatchNorm layer, by its number", y_label="running stds", log=True, places=places
        )
        blocks.append(
            Figure(title, chart, f"{caption} 0 would be exactly as in training. The table has the names of the numbers.")
        )
    heads = ["number", "layer", *(f"{COLUMNS[name]}, {what} off" for name in found.sources for what in ("mean", "std"))]
    rows = [
        [str(n), layers[0].layer, *(number(value) for layer in layers for value in (layer.mean, layer.std))]
        for n, layers in enumerate(zip(*(one.batchnorm for one in found.sources.values()), strict=True), start=1)
    ]
    return [*blocks, Folded("Every layer", [Table(heads, rows, words=2, sortable=True)])]


def _diversity(found: Quality) -> list[Block]:
    groups, caption = _of_classes(
        found,
        lambda one: [one.features_nearest, one.features_nearest_other, one.features_within],
        lambda one: float("inf") if one.features_nearest is None else one.features_nearest,
    )
    names = ["nearest of the class", "nearest of as many others", "any two of the class"]
    chart = bar_chart(
        groups, names, title="Distances in the teacher's features", x_label="part of the typical distance", decimals=2
    )
    explanation = (
        "Of nearest neighbours the median over images, of any two the root mean square, in what the teacher's classifier is given; 1 is the "
        "typical distance between images of different classes. "
        "The first well below the second: classes keep together. All near 0: a class is one picture over and over."
    )
    return [Figure("Distances in the teacher's features, by class", chart, explanation + caption)]


def _near(found: Quality) -> list[Block]:
    explanation = f"Near-duplicates are images with another one of their class closer than {NEAR:g} of the typical distance in pixels: the two share 99 % of "
    explanation += "their variance."
    if not found.sources["set"].near:
        return [Paragraph(f"{explanation} There are none.")]
    groups, caption = _of_classes(found, lambda one: [100 * one.near], lambda one: -one.near)
    chart = bar_chart(
        groups, ["near-duplicates"], title="Near-duplicates", x_label="percent of a class's images", high=100.0, decimals=1
    )
    return [Figure("Near-duplicates, by class", chart, explanation + caption)]


def _of_classes(
    found: Quality, values: Callable[[ClassFigures], Sequence[float | None]], order: Callable[[ClassFigures], float]
) -> tuple[list[Bars], str]:
    """Return bars for each class, or for the first ones in `order`, and a sentence that states the selection."""
    classes = found.per_class
    caption = ""
    if len(classes) > MOST_BARS:
        caption = f" The {WORST} of {len(classes)} classes where it is worst."
        classes = sorted(classes, key=lambda one: (order(one), one.label))[:WORST]
    return [Bars(found.class_name(one.label), values(one)) for one in classes], caption


def _classes(found: Quality) -> list[Block]:
    heads = ["class", "images", "teacher names it", "else mostly", "confidence", "entropy", "clipped"]
    heads += [f"{found.other} names it"] if found.other else []
    heads += ["copies", "near-duplicates", "nearest, pixels", "nearest, features", "others, features"]
    rows = []
    for figures in by_trouble(found.per_class)[:MOST_ROWS]:
        shares = [percent(100 * value, 1) for value in (figures.confidence, figures.entropy, figures.clipped)]
        shares += [] if figures.other is None else [percent(100 * figures.other, 1)]
        near = [f"{figures.exact:,}", percent(100 * figures.near, 1)]
        distances = [
            number(value) for value in (figures.pixels_nearest, figures.features_nearest, figures.features_nearest_other)
        ]
        taken = "–" if figures.taken_for is None else found.class_name(figures.taken_for)
        seen = [found.class_name(figures.label), f"{figures.images:,}", percent(100 * figures.agreement, 1), taken]
        rows.append([*seen, *shares, *near, *distances])
    explanation = "Those with the most near-duplicates and contradicted labels first."
    explanation += f" {MOST_ROWS} of {len(found.per_class)}." if len(found.per_class) > MOST_ROWS else ""
    title = count(len(found.per_class), "class", "classes")
    return [Folded(title, [Paragraph(explanation), Table(heads, rows, sortable=True)])]


def _origins(found: Quality) -> list[list[str]]:
    facts = [
        ("shards", found.shards),
        ("split", found.split),
        ("teacher", found.teacher),
        ("teacher's digest", found.teacher_digest),
        ("other network", found.other),
        ("its digest", found.other_digest),
        ("real images", found.real and f"{found.real.name}, {found.real.layout}"),
        ("seed of the draws", str(found.seed)),
    ]
    return [[name, value] for name, value in facts if value]
