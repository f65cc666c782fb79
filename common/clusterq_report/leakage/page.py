"""leakage.html: figures and images of a leakage report. Free of torch."""

from collections.abc import Callable

from clusterq_common.quantities import number, percent
from clusterq_common.shards.read import ShardSet
from clusterq_report.charts.lines import Line, line_chart
from clusterq_report.html.blocks import Block, Captioned, Figure, Folded, Heading, Paragraph, Table
from clusterq_report.html.gallery import Pixels, pictures, size_shown
from clusterq_report.html.page import Report, Section
from clusterq_report.leakage.findings import RATIO_BINS, RATIO_RANGE, Leakage, SpaceFigures
from clusterq_report.leakage.summary import ATTACKS, SPACES, attack_rows, space_rows
from clusterq_report.leakage.verdicts import leaks, verdicts

GUIDE = "docs/leakage.md"
# Pairs of a space that are shown, and the bytes of all of a space's images before PNG and base64.
SHOWN, BUDGET = 6, 200_000
MOST_ROWS = 1000
# Number of a real image in its source -> (H, W, C) uint8.
Reader = Callable[[int], Pixels]


def leakage_page(leakage: Leakage, shards: ShardSet, train: Reader, held: Reader) -> Report:
    """Return the page. It holds real images.

    Args:
        leakage: figures.
        shards: the set.
        train, held: readers of training and held-out images.

    Raises:
        ClusterqError: an image that it shows cannot be read.
    """
    alarms = leaks(leakage)
    teacher = next((attack for attack in leakage.membership.attacks if attack.model == "teacher"), None)
    tiles = {
        "Images compared": f"{leakage.images:,} of {leakage.of_images:,}",
        "Tests that found something": str(len(alarms)),
        "Exact copies": str(max(space.copies.exact for space in leakage.spaces)),
        "Near-copies, at most": str(max(space.copies.count for space in leakage.spaces)),
        "Nearest is training, pixels": percent(100 * leakage.spaces[0].nearness.value, 1),
    }
    if teacher is not None and teacher.auc is not None:
        tiles["Attack on the teacher, AUC"] = f"{teacher.auc:.3f}"
    sections = [
        Section(
            "figures",
            "The set beside training and held-out images",
            [Table(SPACES, space_rows(leakage)), Paragraph(_about(leakage))],
            opened=True,
        ),
        Section(
            "pairs",
            "The most alike pairs (real images)",
            [block for space in leakage.spaces for block in _pairs(leakage, space, shards, train, held)],
            opened=True,
        ),
        Section("ratios", "How near", [_ratios(space) for space in leakage.spaces]),
        Section("members", "Attacks on the networks", [Table(ATTACKS, attack_rows(leakage))]),
        Section("classes", "Every class", [_classes(leakage, space) for space in leakage.spaces]),
        Section("origins", "Origins", [Table(["what", "value"], _origins(leakage), words=2)]),
    ]
    lead = f"PRIVATE: this page holds real images and must not be shared. {leakage.images:,} synthetic images beside {leakage.train.compared:,} training and {leakage.held.compared:,} held-out images."
    return Report(f"What a set for {leakage.teacher} gives away", lead, tiles, verdicts(leakage), sections, guide=GUIDE)


def _about(leakage: Leakage) -> str:
    return (
        f"Nearest real images are compared among equally many of both kinds ({leakage.equal:,} each, {leakage.draws} draws). Held-out images in the "
        f"set's place: {leakage.control:,}, compared with nothing else. P-values are of near-copies, of nearness and of class means, corrected for "
        "all tests of this table. Class means: by how many standard deviations the training mean is nearer than the held-out mean."
    )


def _pairs(leakage: Leakage, space: SpaceFigures, shards: ShardSet, train: Reader, held: Reader) -> list[Block]:
    reader, spec = shards.split(leakage.split), shards.manifest.teacher.spec
    shown = space.pairs[:SHOWN]
    size = size_shown(spec, 3 * len(shown), BUDGET)
    cells = []
    for pair in shown:
        three = [reader.read(pair.number)[0], train(pair.train), held(pair.held)]
        name = leakage.class_name(pair.label)
        picture = pictures(three, size, f"an image of class {name}, the nearest training image, the nearest held-out image")
        mark = "near-copy, " if pair.near else ""
        caption = f"{name}: {mark}ratio {number(pair.ratio)}, distance {number(pair.distance)}"
        cells.append((picture, caption))
    explanation = "Synthetic, nearest training, nearest held-out image, by the ratio of the two distances, lowest first. Look whether the first two are one picture."
    return [Heading(space.shown), Paragraph(explanation), Captioned(cells)]


def _ratios(space: SpaceFigures) -> Figure:
    low, high = RATIO_RANGE
    middles = [low + (high - low) * (place + 0.5) / RATIO_BINS for place in range(RATIO_BINS)]
    lines = [
        Line(name, [(x, 100 * share) for x, share in zip(middles, shares, strict=True)])
        for name, shares in (("this set", space.ratios), ("held-out images", space.control_ratios))
    ]
    title = f"Distance to training over distance to held-out images, {space.shown}"
    chart = line_chart(lines, title=title, x_label="log2 of the ratio", y_label="percent of images", x_range=RATIO_RANGE)
    return Figure(
        title, chart, "0: as near to both. A copy lies far to the left; what is beyond the ends is counted in the last bins."
    )


def _classes(leakage: Leakage, space: SpaceFigures) -> Folded:
    heads = ["class", "images", "nearest is training", "nearest, 95 %", "p, corrected", "mean nearer by, std", "p, corrected"]
    rows = [
        [
            leakage.class_name(row.label),
            f"{row.images:,}",
            percent(100 * row.auc, 1),
            f"{100 * row.auc_interval[0]:.1f} to {100 * row.auc_interval[1]:.1f}",
            number(row.auc_corrected, 2),
            number(row.mean, 2),
            number(row.mean_corrected, 2),
        ]
        for row in sorted(space.by_class, key=lambda row: (row.auc_corrected, row.label))[:MOST_ROWS]
    ]
    return Folded(f"{space.shown}: {len(space.by_class)} classes, p-values corrected for their number", [Table(heads, rows)])


def _origins(leakage: Leakage) -> list[list[str]]:
    facts = [
        ("shards", leakage.shards),
        ("split", leakage.split),
        ("teacher", leakage.teacher),
        ("teacher's digest", leakage.teacher_digest),
        ("other network", leakage.other),
        ("its digest", leakage.other_digest),
        ("training images", f"{leakage.train.name}, {leakage.train.layout}"),
        ("held-out images", f"{leakage.held.name}, {leakage.held.layout}"),
        ("random exchanges", str(leakage.permutations)),
        ("seed of the draws", str(leakage.seed)),
    ]
    return [[name, value] for name, value in facts if value]
