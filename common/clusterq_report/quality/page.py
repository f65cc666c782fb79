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


def quality_page(quality: Quality, shards: ShardSet) -> Report:
    """Return the page of a set.

    Raises:
        ClusterqError: an image that it shows cannot be read.
    """
    own = quality.sources["set"]
    tiles = {
        "Teacher": quality.teacher,
        "Images measured": f"{own.images:,} of {quality.of_images:,}",
        "Teacher names the label": percent(100 * own.agreement),
        "Mean confidence": percent(100 * own.confidence.mean, 1),
        "Exact copies": f"{own.exact:,}",
        "Near-duplicates": percent(100 * own.near),
    }
    if own.other is not None:
        tiles[f"{quality.other} names the label"] = percent(100 * own.other)
    if own.frechet is not None:
        tiles["Frechet distance, of real variance"] = number(own.frechet.relative)
    heads, rows = summary_rows(quality)
    sections = [
        Section("figures", "The figures and their references", [Paragraph(_about(quality)), Table(heads, rows)], opened=True),
        Section("images", "Images", gallery(shards, quality.split), opened=True),
        Section(
            "teacher",
            "What the teacher makes of them",
            [*_certainty(quality), *_agreement(quality), *contradicted(quality, shards)],
        ),
        Section("network", "Inside the teacher", _batchnorm(quality)),
        Section("diversity", "Diversity", _diversity(quality)),
        Section("duplicates", "Duplicates", [*_near(quality), *closest_pairs(quality, shards)]),
        Section("classes", "Every class", _classes(quality)),
        Section("origins", "Origins", [Table(["what", "value"], _origins(quality), words=2)]),
    ]
    beside = (
        f"{quality.sources['real'].images:,} real images and pure noise"
        if quality.real
        else "pure noise, without one real image"
    )
    lead = f"{own.images:,} synthetic images made for {quality.teacher}, measured beside {beside}."
    return Report(f"Quality of synthetic images for {quality.teacher}", lead, tiles, verdicts(quality), sections, guide=GUIDE)


def _about(quality: Quality) -> str:
    explanation = (
        "Pure noise: as many images without any content, each value drawn with the mean and std of the teacher's normalisation."
    )
    if quality.real is not None:
        explanation += f" Real images: {quality.sources['real'].images:,} of {quality.real.images:,} in {quality.real.name} ({quality.real.layout})."
    return (
        explanation
        + " Distances within a row of pixels or features are in units of the typical distance of the column's own images."
    )


def _certainty(quality: Quality) -> list[Block]:
    def drawn(title: str, x_label: str, of: Callable[[ImageFigures], Distribution], caption: str) -> Figure:
        middles = [100 * (place + 0.5) / BINS for place in range(BINS)]
        lines = [
            Line(COLUMNS[name], [(x, 100 * share) for x, share in zip(middles, of(source).shares, strict=True)])
            for name, source in quality.sources.items()
        ]
        chart = line_chart(lines, title=title, x_label=x_label, y_label="percent of images", x_range=(0, 100))
        return Figure(title, chart, caption)

    bins = f"Shares of images in {BINS} bins of equal width."
    return [
        drawn(
            "The teacher's confidence",
            "confidence in its first class, percent",
            lambda source: source.confidence,
            f"{bins} Images of which the teacher is as sure as of real ones carry its classes; all of them at the right end are easy ones.",
        ),
        drawn(
            "Entropy of the teacher's answer",
            "entropy, percent of the most possible",
            lambda source: source.entropy,
            f"{bins} 0: one class alone; 100: all classes alike.",
        ),
    ]


def _agreement(quality: Quality) -> list[Block]:
    if quality.sources["set"].agreement == 1 and quality.other is None:
        return [Paragraph("The teacher names the stored label on every image of every class.")]
    names = ["teacher", *([quality.other] if quality.other else [])]
    groups, caption = _of_classes(
        quality,
        lambda class_figures: [
            100 * class_figures.agreement,
            *([] if class_figures.other is None else [100 * class_figures.other]),
        ],
        lambda class_figures: class_figures.agreement if class_figures.other is None else class_figures.other,
    )
    chart = bar_chart(groups, names, title="Labels confirmed", x_label="percent of a class's images", high=100.0, decimals=1)
    return [Figure("Labels confirmed, by class", chart, "Share of images of which a network names the stored label." + caption)]


def _batchnorm(quality: Quality) -> list[Block]:
    names = [layer.layer for layer in quality.sources["set"].batchnorm]
    places = {float(n): f"{n} {name}" for n, name in enumerate(names, start=1)}
    blocks: list[Block] = []
    for key, title, caption in (
        ("mean", "Distance of BatchNorm means", "Root mean square over channels of (mean - running mean) / running std."),
        ("std", "Distance of BatchNorm stds", "Mean over channels of |std / running std - 1|."),
    ):
        lines = [
            Line(COLUMNS[name], [(n, getattr(layer, key)) for n, layer in enumerate(source.batchnorm, start=1)])
            for name, source in quality.sources.items()
        ]
        chart = line_chart(
            lines, title=title, x_label="BatchNorm layer, by its number", y_label="running stds", log=True, places=places
        )
        blocks.append(
            Figure(title, chart, f"{caption} 0 would be exactly as in training. The table has the names of the numbers.")
        )
    heads = ["number", "layer", *(f"{COLUMNS[name]}, {what} off" for name in quality.sources for what in ("mean", "std"))]
    rows = [
        [str(n), layers[0].layer, *(number(value) for layer in layers for value in (layer.mean, layer.std))]
        for n, layers in enumerate(zip(*(source.batchnorm for source in quality.sources.values()), strict=True), start=1)
    ]
    return [*blocks, Folded("Every layer", [Table(heads, rows, words=2, sortable=True)])]


def _diversity(quality: Quality) -> list[Block]:
    groups, caption = _of_classes(
        quality,
        lambda class_figures: [
            class_figures.features_nearest,
            class_figures.features_nearest_other,
            class_figures.features_within,
        ],
        lambda class_figures: float("inf") if class_figures.features_nearest is None else class_figures.features_nearest,
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


def _near(quality: Quality) -> list[Block]:
    explanation = f"Near-duplicates are images with another one of their class closer than {NEAR:g} of the typical distance in pixels: the two share 99 % of "
    explanation += "their variance."
    if not quality.sources["set"].near:
        return [Paragraph(f"{explanation} There are none.")]
    groups, caption = _of_classes(
        quality, lambda class_figures: [100 * class_figures.near], lambda class_figures: -class_figures.near
    )
    chart = bar_chart(
        groups, ["near-duplicates"], title="Near-duplicates", x_label="percent of a class's images", high=100.0, decimals=1
    )
    return [Figure("Near-duplicates, by class", chart, explanation + caption)]


def _of_classes(
    quality: Quality, values: Callable[[ClassFigures], Sequence[float | None]], order: Callable[[ClassFigures], float]
) -> tuple[list[Bars], str]:
    """Return bars for each class, or for the first ones in `order`, and a sentence that states the selection."""
    classes = quality.per_class
    caption = ""
    if len(classes) > MOST_BARS:
        caption = f" The {WORST} of {len(classes)} classes where it is worst."
        classes = sorted(classes, key=lambda class_figures: (order(class_figures), class_figures.label))[:WORST]
    return [Bars(quality.class_name(class_figures.label), values(class_figures)) for class_figures in classes], caption


def _classes(quality: Quality) -> list[Block]:
    heads = ["class", "images", "teacher names it", "else mostly", "confidence", "entropy", "clipped"]
    heads += [f"{quality.other} names it"] if quality.other else []
    heads += ["copies", "near-duplicates", "nearest, pixels", "nearest, features", "others, features"]
    rows = []
    for figures in by_trouble(quality.per_class)[:MOST_ROWS]:
        shares = [percent(100 * value, 1) for value in (figures.confidence, figures.entropy, figures.clipped)]
        shares += [] if figures.other is None else [percent(100 * figures.other, 1)]
        near = [f"{figures.exact:,}", percent(100 * figures.near, 1)]
        distances = [
            number(value) for value in (figures.pixels_nearest, figures.features_nearest, figures.features_nearest_other)
        ]
        taken = "–" if figures.taken_for is None else quality.class_name(figures.taken_for)
        seen = [quality.class_name(figures.label), f"{figures.images:,}", percent(100 * figures.agreement, 1), taken]
        rows.append([*seen, *shares, *near, *distances])
    explanation = "Those with the most near-duplicates and contradicted labels first."
    explanation += f" {MOST_ROWS} of {len(quality.per_class)}." if len(quality.per_class) > MOST_ROWS else ""
    title = count(len(quality.per_class), "class", "classes")
    return [Folded(title, [Paragraph(explanation), Table(heads, rows, sortable=True)])]


def _origins(quality: Quality) -> list[list[str]]:
    facts = [
        ("shards", quality.shards),
        ("split", quality.split),
        ("teacher", quality.teacher),
        ("teacher's digest", quality.teacher_digest),
        ("other network", quality.other),
        ("its digest", quality.other_digest),
        ("real images", quality.real and f"{quality.real.name}, {quality.real.layout}"),
        ("seed of the draws", str(quality.seed)),
    ]
    return [[name, value] for name, value in facts if value]
