"""ClusterQ, Fig. 5 and 7: differences between images of one class, for example with and without diversity enhancement."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from clusterq_finetune.figures.config import DiversityConfig, FileConfig
from clusterq_finetune.figures.draw import (
    DASHES,
    LINE_COLOURS,
    MARKERS,
    PAGE_WIDTH,
    REAL_COLOUR,
    SIZE,
    SMALL,
    Drawing,
    mosaic,
    new_figure,
    show_pixels,
    style,
)
from clusterq_finetune.figures.measure import short_layer
from clusterq_finetune.figures.sources import ImageGroup
from clusterq_finetune.figures.spread import Array, within_class_distances, within_class_spread

PIXELS = "pixels"
# Ends of a box's whiskers, in percent.
LOW, HIGH = 5.0, 95.0
BY_LAYER_HEIGHT, BOXES_HEIGHT, LABEL_WIDTH = 2.1, 2.0, 1.2


def draw_diversity(
    sources: Sequence[ImageGroup],
    values: Sequence[dict[str, Array]],
    layers: Sequence[str],
    order: Sequence[str],
    class_names: dict[int, str],
    shown_classes: Sequence[int],
    config: DiversityConfig,
    files: FileConfig,
) -> Drawing:
    """Draw a figure of three parts.

    They are the spread within classes in every BatchNorm layer, the distances between images of a class in some layers and in
    pixels, and the images themselves.

    Args:
        sources: real images first, if there are any.
        values: features of each source, by layer, (N, C).
        layers: layers with boxes; order: all of the teacher's layers.
        class_names: names by class.
        shown_classes: classes whose images are shown.
        config, files: settings.
    """
    title = "How much images of one class differ"
    caption = _caption(sources, len(class_names), shown_classes, config)
    looks = _looks(sources)
    cell = (PAGE_WIDTH - LABEL_WIDTH) / config.shown
    tall = cell * sources[0].pixels.shape[-2] / sources[0].pixels.shape[-1]
    strip_heights = [0.25 + len(sources) * (tall + 0.04) for _ in shown_classes]
    heights = [BY_LAYER_HEIGHT, BOXES_HEIGHT, *strip_heights]
    with style():
        figure = new_figure(PAGE_WIDTH, sum(heights), title, caption, files)
        parts = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        numbers = _by_layer(figure.add_subplot(parts[0]), sources, values, order, looks)
        boxes = parts[1].subgridspec(1, len(layers) + 1).subplots(squeeze=False)[0]
        numbers += _boxes(list(boxes), sources, values, layers, order, looks)
        for place, label in enumerate(shown_classes, 2):
            strips = parts[place].subgridspec(len(sources), 1).subplots(squeeze=False)[:, 0]
            _images(list(strips), sources, label, class_names, config.shown)
    return Drawing(figure, title, caption, numbers)


def _looks(sources: Sequence[ImageGroup]) -> list[dict[str, Any]]:
    """Return a distinct colour, marker and dash for each source."""
    colours = iter(LINE_COLOURS)
    return [
        {"color": REAL_COLOUR if source.real else next(colours), "marker": MARKERS[place], "linestyle": DASHES[place]}
        for place, source in enumerate(sources)
    ]


def _by_layer(
    axes: Axes,
    sources: Sequence[ImageGroup],
    values: Sequence[dict[str, Array]],
    order: Sequence[str],
    looks: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    places = np.arange(1, len(order) + 1)
    numbers: list[dict[str, Any]] = []
    for source, by_layer, look in zip(sources, values, looks, strict=True):
        spread = np.stack([within_class_spread(by_layer[name], source.labels) for name in order])
        low, middle, high = np.nanpercentile(spread, (25, 50, 75), axis=1)
        axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
        (line,) = axes.plot(places, middle, markersize=3.5, label=source.name, **look)
        line.set_gid(f"spread-{len(numbers) // len(order) + 1}")
        numbers += [_number("within-class spread", name, source, low[n], middle[n], high[n]) for n, name in enumerate(order)]
    axes.set_ylim(bottom=0)
    axes.set_xlim(0.5, len(order) + 0.5)
    axes.set_xlabel("BatchNorm layer, in order of execution")
    axes.set_ylabel("spread within a class,\nrunning stds")
    axes.legend(loc="best")
    return numbers


def _boxes(
    panels: Sequence[Axes],
    sources: Sequence[ImageGroup],
    values: Sequence[dict[str, Array]],
    layers: Sequence[str],
    order: Sequence[str],
    looks: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    flat = [source.pixels.flatten(1).double().numpy() for source in sources]
    names = [PIXELS, *layers]
    numbers = []
    for place, (axes, name) in enumerate(zip(panels, names, strict=True)):
        percentiles = []
        for source, by_layer, pixels in zip(sources, values, flat, strict=True):
            distances = within_class_distances(pixels if name == PIXELS else by_layer[name], source.labels)
            percentiles.append(np.percentile(distances, (LOW, 25, 50, 75, HIGH)))
            numbers.append(_number("within-class distance", name, source, *percentiles[-1][1:4]))
        _draw_boxes(axes, percentiles, looks)
        panel_title = "pixels" if name == PIXELS else short_layer(name, order).replace(" (", "\n(")
        axes.set_title(panel_title, size=SMALL)
        if place < 2:
            axes.set_ylabel("distance, grey levels" if name == PIXELS else "distance, running stds", size=SMALL)
        axes.set_xticks(range(1, len(sources) + 1), [s.name for s in sources], rotation=30, ha="right", rotation_mode="anchor")
        axes.set_ylim(bottom=0)
    return numbers


def _draw_boxes(axes: Axes, values: Sequence[Array], looks: Sequence[dict[str, Any]]) -> None:
    stats = [
        {"whislo": low, "q1": lower, "med": middle, "q3": upper, "whishi": high, "fliers": []}
        for low, lower, middle, upper, high in values
    ]
    drawn = axes.bxp(stats, showfliers=False, patch_artist=True, widths=0.55, medianprops={"color": "black"})
    for box, look in zip(drawn["boxes"], looks, strict=True):
        box.set(facecolor=look["color"], alpha=0.45, edgecolor=look["color"])


def _images(panels: Sequence[Axes], sources: Sequence[ImageGroup], label: int, class_names: dict[int, str], shown: int) -> None:
    panels[0].set_title(f"class {class_names[label]}", size=SIZE, loc="left")
    for axes, source in zip(panels, sources, strict=True):
        own = source.pixels[np.flatnonzero(source.labels == label)[:shown]]
        show_pixels(axes, mosaic(own, shown)[0])
        axes.set_ylabel(source.name, rotation=0, ha="right", va="center", size=SMALL)


def _number(what: str, layer: str, source: ImageGroup, low: float, middle: float, high: float) -> dict[str, Any]:
    return {
        "what": what,
        "layer": layer,
        "source": source.name,
        "lower quartile": float(low),
        "median": float(middle),
        "upper quartile": float(high),
    }


def _caption(sources: Sequence[ImageGroup], classes: int, shown_classes: Sequence[int], config: DiversityConfig) -> str:
    return (
        "Top: root of the variance within a class of each image's channel means at the inputs of BatchNorm layers (mean over channels, in running standard "
        f"deviations); median over {classes} classes, band: quartiles. Middle: distances between all pairs of images of one class, root mean square over pixels "
        f"or channels; line: median, box: quartiles, whiskers: {LOW:g} to {HIGH:g} %. "
        f"Below: the first {config.shown} images of {'class' if len(shown_classes) == 1 else 'classes'} {', '.join(map(str, shown_classes))}, chosen by nobody. Shown: "
        + "; ".join(f"{source.about}, {len(source.labels)} images" for source in sources)
        + "."
    )
