"""Images for the figures: closest pairs, and images whose label the teacher contradicts. Free of torch."""

from clusterq_common.shards.read import ShardSet
from clusterq_report.html.gallery import size_shown, strip
from clusterq_report.html.page import paragraph
from clusterq_report.html.text import escaped, number, percent, tag
from clusterq_report.quality.findings import Quality

# Bytes of each group of images, before PNG and base64; far fewer than the gallery's.
BUDGET = 200_000


def closest_pairs(found: Quality, shards: ShardSet) -> str:
    """Return markup of the closest pairs in pixels, side by side.

    Raises:
        ClusterqError: a sample cannot be read.
    """
    if not found.pairs:
        return ""
    reader, spec = shards.split(found.split), shards.manifest.teacher.spec
    size = size_shown(spec, 2 * len(found.pairs), BUDGET)
    cells = []
    for pair in found.pairs:
        name = found.class_name(pair.label)
        picture = strip(reader, [pair.first, pair.second], size, f"the closest two images of class {name}")
        cells.append(_captioned(picture, f"{name}: {number(pair.distance)}"))
    explanation = "The closest pairs, with their distance in pixels as a part of the typical one: one of each class first, then second ones. Look whether they are one picture."
    return tag("h3", "The closest pairs") + paragraph(explanation) + tag("div", *cells, class_="smalls")


def contradicted(found: Quality, shards: ShardSet) -> str:
    """Return markup of the images whose label the teacher contradicts with most confidence; empty where there are none.

    Raises:
        ClusterqError: a sample cannot be read.
    """
    if not found.contradicted:
        return ""
    reader, spec = shards.split(found.split), shards.manifest.teacher.spec
    size = size_shown(spec, len(found.contradicted), BUDGET)
    cells = []
    for image in found.contradicted:
        label, named = found.class_name(image.label), found.class_name(image.named)
        picture = strip(reader, [image.number], size, f"an image labelled {label}")
        cells.append(_captioned(picture, f"labelled {label}, the teacher says {named} ({percent(100 * image.confidence, 0)})"))
    explanation = "Images whose label the teacher contradicts, those that it is surest of first, one of each class before a second one of any."
    return tag("h3", "Labels contradicted") + paragraph(explanation) + tag("div", *cells, class_="smalls")


def _captioned(picture: str, caption: str) -> str:
    return tag("div", picture, tag("div", escaped(caption), class_="tick"), class_="small")
