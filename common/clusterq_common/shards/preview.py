"""Picture of a set: the first images of each class, one row a class."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clusterq_common.files import atomic_file
from clusterq_common.images.contact_sheet import contact_sheet
from clusterq_common.images.png import Array
from clusterq_common.shards.manifest import SplitName
from clusterq_common.shards.read import ShardSet

GAP = 2
LABEL_WIDTH = 120
LABEL_CHARACTERS = 18
LABEL_HEIGHT = 12
# Small images are enlarged to at least this on their longer side, by whole factors, so that pixels stay square.
SMALLEST_SHOWN = 48


def preview(shards: ShardSet, split: SplitName, classes: list[int], columns: int, path: Path) -> int:
    """Write a PNG with up to `columns` images of each class; returns how many images are on it.

    Raises:
        ClusterqError: a sample cannot be read.
    """
    spec, names = shards.manifest.teacher.spec, shards.manifest.class_names
    factor = max(1, -(-SMALLEST_SHOWN // spec.longer_side))
    height = spec.height * factor
    # Height of a row. Its label may be higher than its images.
    below = max(0, LABEL_HEIGHT - height)
    rows: dict[int, list[Array]] = {label: [] for label in classes}
    reader = shards.split(split)
    for number in range(len(reader)):
        row = rows.get(reader.label(number))
        if row is not None and len(row) < columns:
            pixels, _, _ = reader.read(number)
            colour = np.repeat(pixels, 3, axis=2) if spec.channels == 1 else pixels
            large = colour.repeat(factor, axis=0).repeat(factor, axis=1)
            row.append(np.pad(large, ((0, below), (0, 0), (0, 0)), constant_values=255))
            if all(len(row) == columns for row in rows.values()):
                break
    white = np.full((height + below, spec.width * factor, 3), 255, dtype=np.uint8)
    cells = [image for row in rows.values() for image in row + [white] * (columns - len(row))]
    sheet = contact_sheet(cells, columns, gap=GAP, border=GAP)
    labels = _labels([f"{label} {names[label]}" if names else str(label) for label in classes], sheet.shape[0])
    with atomic_file(path) as file:
        Image.fromarray(np.concatenate([labels, sheet], axis=1)).save(file, "PNG")
    return sum(map(len, rows.values()))


def _labels(texts: list[str], height: int) -> Array:
    """Return the column of labels beside the rows, (height, LABEL_WIDTH, 3)."""
    column = Image.new("RGB", (LABEL_WIDTH, height), "white")
    draw, cell = ImageDraw.Draw(column), (height - GAP) // len(texts)
    for row, text in enumerate(texts):
        draw.text((GAP, row * cell + GAP + cell // 2 - LABEL_HEIGHT // 2), text[:LABEL_CHARACTERS], fill="black")
    return np.array(column)
