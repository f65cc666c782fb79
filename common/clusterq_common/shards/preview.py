"""A contact sheet: the first images of each class, one row a class."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clusterq_common.files import atomic_file
from clusterq_common.shards.manifest import SplitName
from clusterq_common.shards.read import ShardSet

GAP = 2
LABEL_WIDTH = 120
LABEL_CHARACTERS = 18
LABEL_HEIGHT = 12
# Small images are enlarged to at least this on their longer side, by whole factors, so that pixels stay pixels.
SMALLEST_SHOWN = 48


def contact_sheet(shards: ShardSet, split: SplitName, classes: list[int], columns: int, path: Path) -> int:
    """Write a PNG with up to `columns` images of each class; returns how many images are on it.

    Raises:
        ClusterqError: a sample cannot be read.
    """
    spec, names = shards.manifest.teacher.spec, shards.manifest.class_names
    factor = max(1, -(-SMALLEST_SHOWN // spec.longer_side))
    shown_size = spec.width * factor, spec.height * factor
    across, down = shown_size[0] + GAP, max(shown_size[1], LABEL_HEIGHT) + GAP
    sheet = Image.new("RGB", (LABEL_WIDTH + columns * across + GAP, len(classes) * down + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    row_of = {label: row for row, label in enumerate(classes)}
    for label, row in row_of.items():
        text = f"{label} {names[label]}" if names else str(label)
        draw.text((GAP, row * down + GAP + down // 2 - LABEL_HEIGHT // 2), text[:LABEL_CHARACTERS], fill="black")
    shown = dict.fromkeys(classes, 0)
    missing = len(classes)
    reader = shards.split(split)
    for number in range(len(reader)):
        label = reader.label(number)
        if shown.get(label, columns) >= columns:
            continue
        pixels, _, _ = reader.read(number)
        image = Image.fromarray(np.repeat(pixels, 3, axis=2) if spec.channels == 1 else pixels)
        place = (LABEL_WIDTH + GAP + shown[label] * across, GAP + row_of[label] * down)
        sheet.paste(image.resize(shown_size, Image.Resampling.NEAREST), place)
        shown[label] += 1
        missing -= shown[label] == columns
        if not missing:
            break
    with atomic_file(path) as file:
        sheet.save(file, "PNG")
    return sum(shown.values())
