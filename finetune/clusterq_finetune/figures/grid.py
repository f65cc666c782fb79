"""ClusterQ, Fig. 6: images of the same classes by different methods, a row each."""

from collections.abc import Sequence
from typing import Any

import torch

from clusterq_finetune.figures.config import FileConfig
from clusterq_finetune.figures.draw import PAGE_HEIGHT, PAGE_WIDTH, SIZE, Drawing, mosaic, new_figure, show_pixels, style
from clusterq_finetune.figures.sources import ImageGroup

LABEL_WIDTH, LARGEST_CELL = 1.2, 0.75


def draw_grid(sources: Sequence[ImageGroup], class_names: dict[int, str], per_class: int, files: FileConfig) -> Drawing:
    """Draw a grid of images. Rows are sources, `per_class` lines of images each; columns are classes.

    Places without an image stay empty.

    Args:
        sources: sources of images of the same size.
        class_names: names by class, the columns.
        per_class: images of a class.
        files: settings.
    """
    title = "The same classes by each run"
    columns = len(class_names)
    # Inches of an image's width; its height is `tall` times that.
    tall = sources[0].pixels.shape[-2] / sources[0].pixels.shape[-1]
    lines = len(sources) * per_class
    cell = min(LARGEST_CELL / max(1, tall), (PAGE_WIDTH - LABEL_WIDTH) / columns, (PAGE_HEIGHT - 1.5) / lines / tall)
    caption = _caption(sources, per_class)
    height = len(sources) * (per_class * cell * tall + 0.1) + 0.3
    with style():
        figure = new_figure(max(3.0, LABEL_WIDTH + columns * cell), height, title, caption, files)
        panels = figure.subplots(len(sources), 1, squeeze=False)
        for row, source in enumerate(sources):
            axes = panels[row, 0]
            sheet, width, gap = mosaic(_in_columns(source, class_names, per_class), columns)
            show_pixels(axes, sheet)
            axes.set_ylabel(source.name, rotation=0, ha="right", va="center", size=SIZE)
            axes.get_images()[0].set_gid(f"row-{row + 1}")
            if row == 0:
                places = [number * (width + gap) + width / 2 for number in range(columns)]
                slanted = any(len(name) > 6 for name in class_names.values())
                axes.set_xticks(
                    places, list(class_names.values()), rotation=30 if slanted else 0, ha="left" if slanted else "center"
                )
                axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    return Drawing(figure, title, caption, [])


def _in_columns(source: ImageGroup, class_names: dict[int, Any], per_class: int) -> torch.Tensor:
    """Return (per_class x classes, C, H, W): the n-th images of all classes, for each n; white where a class has fewer."""
    blank = torch.full_like(source.pixels[0], 255)
    own = {label: source.pixels[torch.from_numpy(source.labels == label)] for label in class_names}
    return torch.stack([own[label][n] if n < len(own[label]) else blank for n in range(per_class) for label in class_names])


def _caption(sources: Sequence[ImageGroup], per_class: int) -> str:
    many = "The first image" if per_class == 1 else f"The first {per_class} images"
    shards = [source for source in sources if not source.real]
    caption = f"{many} of each class in each set of shards, chosen by nobody; columns: the class asked of the generator"
    caption += ", of real images their label, the first by name" if len(shards) < len(sources) else ""
    return f"{caption}. Shown: {'; '.join(source.about for source in sources)}."
