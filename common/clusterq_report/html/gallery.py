"""Gallery of stored images, class by class, from the shards. Free of torch."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.shards.manifest import SplitName
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.split_reader import SplitReader
from clusterq_common.teacher.spec import InputSpec
from clusterq_report.html.blocks import Block, Paragraph, Picture, Strips
from clusterq_report.html.redact_paths import without_places
from clusterq_report.html.text import class_label
from clusterq_report.run_data import RunData
from clusterq_report.sample_selection import first_of_classes, first_shards, spread_classes

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
CLASSES, COLUMNS = 16, 8
# Limit for all images together, before PNG and base64, so that the page stays below two megabytes.
BYTES = 1_000_000
GAP = 1
# Small images are enlarged by whole factors, so that pixels stay sharp.
SMALLEST_SHOWN = 72


def stored_images(source: RunData, missing: str) -> list[Block]:
    """Return the images in a run's shards, or `missing`, or the reason why they cannot be read."""
    if source.manifest is None:
        return [Paragraph(missing)]
    try:
        return gallery(ShardSet(source.shards, source.manifest))
    except ClusterqError as error:  # e.g. a set without its tars: the rest of the page is still useful
        return [Paragraph(f"The images cannot be shown. {without_places(str(error), source.folder)}")]


def gallery(shards: ShardSet, split: SplitName = "train") -> list[Block]:
    """Return one row of images for each class, up to 16 classes and 8 images.

    Raises:
        ClusterqError: a sample cannot be read.
    """
    manifest = shards.manifest
    spec, names = manifest.teacher.spec, manifest.class_names
    per_class = manifest.splits[split].per_class
    classes = spread_classes(per_class, CLASSES)
    reader = first_shards(shards, split)
    by_class = {label: numbers for label, numbers in first_of_classes(reader, classes, COLUMNS).items() if numbers}
    size = size_shown(spec, COLUMNS * len(by_class))
    strips = []
    for label, numbers in by_class.items():
        name = class_label(label, names[label] if names else None)
        strips.append((name, strip(reader, numbers, size, f"{len(numbers)} stored images of class {name}")))
    present = sum(count > 0 for count in per_class)
    of = f"{len(by_class)} of {present} classes, evenly spread" if len(by_class) < present else "every class"
    of += f" that has any ({len(per_class) - present} have none)" if len(by_class) == present < len(per_class) else ""
    shown = "" if size == (spec.height, spec.width) else f", made smaller from {spec.shown_size}"
    explanation = f"The first stored images of {of}{shown}; they were not selected. They are synthetic."
    return [Strips(strips), Paragraph(explanation)]


def size_shown(spec: InputSpec, images: int, budget: int = BYTES) -> tuple[int, int]:
    """Return the height and width in pixels at which this number of images together has at most `budget` bytes.

    The shorter side keeps at least 8 pixels, or all that it has.
    """
    shorter = min(spec.height, spec.width)
    side = max(8, math.isqrt(budget // (spec.channels * max(1, images)) * shorter // spec.longer_side))
    return (spec.height, spec.width) if side >= shorter else (spec.height * side // shorter, spec.width * side // shorter)


def strip(reader: SplitReader, numbers: Sequence[int], size: tuple[int, int], shows: str) -> Picture:
    """Return images side by side, each of `size` (height, width), as one picture; `shows` is its alternative text.

    Raises:
        ClusterqError: a sample cannot be read.
    """
    return pictures([reader.read(number)[0] for number in numbers], size, shows)


def pictures(images: Sequence[Pixels], size: tuple[int, int], shows: str) -> Picture:
    """Return images (H, W, C) uint8 side by side, each of `size` (height, width), as one picture; `shows` is its alternative text."""
    height, width = size
    grey = images[0].shape[2] == 1
    row = Image.new("L" if grey else "RGB", (len(images) * (width + GAP) - GAP, height), "gray")
    for place, pixels in enumerate(images):
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if grey else pixels))
        small = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BOX)
        row.paste(small, (place * (width + GAP), 0))
    factor = max(1, SMALLEST_SHOWN // max(size))
    return Picture(_as_url(row), shows, row.width * factor, row.height * factor)


def _as_url(image: Image.Image) -> Markup:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False, compress_level=6)
    return Markup("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
