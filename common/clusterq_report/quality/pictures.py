"""Images for the figures: closest pairs, and images whose label the teacher contradicts. Free of torch."""

from collections.abc import Sequence

from clusterq_common.quantities import number, percent
from clusterq_common.shards.read import ShardSet
from clusterq_report.html.blocks import Block, Captioned, Heading, Paragraph
from clusterq_report.html.gallery import size_shown, strip
from clusterq_report.quality.findings import Quality

# Bytes of each group of images, before PNG and base64; far fewer than the gallery's.
BUDGET = 200_000
# Numbers of images side by side, what they show, and the caption below.
Shown = tuple[list[int], str, str]


def closest_pairs(quality: Quality, shards: ShardSet) -> list[Block]:
    """Return the closest pairs in pixels, side by side.

    Raises:
        ClusterqError: a sample cannot be read.
    """
    shown = []
    for pair in quality.pairs:
        name = quality.class_name(pair.label)
        shown.append(([pair.first, pair.second], f"the closest two images of class {name}", f"{name}: {number(pair.distance)}"))
    explanation = "The closest pairs, with their distance in pixels as a part of the typical one: one of each class first, then second ones. Look whether they are one picture."
    return _pictures(quality, shards, "The closest pairs", explanation, shown)


def contradicted(quality: Quality, shards: ShardSet) -> list[Block]:
    """Return the images whose label the teacher contradicts with most confidence; empty where there are none.

    Raises:
        ClusterqError: a sample cannot be read.
    """
    shown = []
    for image in quality.contradicted:
        label, named = quality.class_name(image.label), quality.class_name(image.named)
        caption = f"labelled {label}, the teacher says {named} ({percent(100 * image.confidence, 0)})"
        shown.append(([image.number], f"an image labelled {label}", caption))
    explanation = "Images whose label the teacher contradicts, those that it is surest of first, one of each class before a second one of any."
    return _pictures(quality, shards, "Labels contradicted", explanation, shown)


def _pictures(quality: Quality, shards: ShardSet, title: str, explanation: str, shown: Sequence[Shown]) -> list[Block]:
    if not shown:
        return []
    reader, spec = shards.split(quality.split), shards.manifest.teacher.spec
    size = size_shown(spec, sum(len(numbers) for numbers, _, _ in shown), BUDGET)
    pictures = [(strip(reader, numbers, size, shows), caption) for numbers, shows, caption in shown]
    return [Heading(title), Paragraph(explanation), Captioned(pictures)]
