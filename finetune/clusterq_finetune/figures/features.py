"""ClusterQ, Fig. 1 and 3: the teacher's features of generated and of real images, layer by layer, in two dimensions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from clusterq_finetune.figures.config import FeaturesConfig, FileConfig
from clusterq_finetune.figures.draw import CLASS_COLOURS, FAINT, PAGE_WIDTH, SMALL, Drawing, new_figure, style
from clusterq_finetune.figures.measure import short_layer
from clusterq_finetune.figures.project import Projection, project
from clusterq_finetune.figures.sources import ImageGroup
from clusterq_finetune.figures.spread import Array, Ints, nearest_own_class

LARGEST_PANEL, LEGEND_WIDTH = 2.4, 0.9
POINT = 7.0


def draw_features(
    sources: Sequence[ImageGroup],
    values: Sequence[dict[str, Array]],
    layers: Sequence[str],
    order: Sequence[str],
    class_names: dict[int, str],
    config: FeaturesConfig,
    files: FileConfig,
) -> Drawing:
    """Draw one row a layer and one column a source.

    Each row is one projection of all images together, so that positions are comparable between its panels. A panel shows its own
    images in colour over all other images in grey.

    Args:
        sources: real images first, if there are any.
        values: features of each source, by layer, (N, C).
        layers: layers to draw; order: all of the teacher's layers.
        class_names: names by class, in the order of the legend.
        config, files: settings.

    Raises:
        ClusterqError: see `project`.
    """
    title = f"{'t-SNE' if config.projection == 'tsne' else 'PCA'} of features inside the teacher, by BatchNorm layer"
    panel = min(LARGEST_PANEL, (PAGE_WIDTH - LEGEND_WIDTH) / len(sources))
    caption = _caption(sources, config)
    numbers: list[dict[str, Any]] = []
    with style():
        width = max(3.5, panel * len(sources) + LEGEND_WIDTH)
        figure = new_figure(width, (panel + 0.35) * len(layers), title, caption, files)
        panels = figure.subplots(len(layers), len(sources), squeeze=False)
        for row, layer in enumerate(layers):
            own = [by_layer[layer] for by_layer in values]
            flat = project(np.concatenate(own), config, layer)
            ends = np.cumsum([len(each) for each in own])[:-1]
            parts = np.split(flat.points, ends)
            for column, (source, points) in enumerate(zip(sources, parts, strict=True)):
                axes = panels[row, column]
                _panel(axes, flat, points, source.labels, class_names, gid=f"points-{row + 1}-{column + 1}")
                axes.set_title(f"{source.name}, n = {len(points)}" if row == 0 else "", size=SMALL + 1)
                nearness = _nearest(sources, own, column)
                axes.set_xlabel("\n".join([*([flat.axes[0]] if flat.axes[0] else []), *nearness]), size=SMALL)
                numbers += [
                    {"layer": layer, "source": source.name, "class": int(label), "x": float(x), "y": float(y)}
                    for label, (x, y) in zip(source.labels, points, strict=True)
                ]
            name = short_layer(layer, order)
            panels[row, 0].set_ylabel(f"{name}\n{flat.axes[1]}".rstrip(), size=SMALL + 0.5)
        keys = [
            Line2D([], [], marker="o", linestyle="", markersize=4, color=CLASS_COLOURS[place], label=name)
            for place, name in enumerate(class_names.values())
        ]
        figure.legend(handles=keys, loc="outside right upper", title="class", title_fontsize=SMALL)
    return Drawing(figure, title, caption, numbers)


def _panel(axes: Axes, flat: Projection, points: Array, labels: Ints, class_names: dict[int, str], gid: str) -> None:
    # Drawn as a line's markers, because a scatter repeats the style for each point in an SVG.
    axes.plot(flat.points[:, 0], flat.points[:, 1], linestyle="", marker="o", markersize=1.9, mew=0, color=FAINT, zorder=1)
    colour_of = {label: CLASS_COLOURS[place] for place, label in enumerate(class_names)}
    # Classes are interleaved, so that no class covers all others.
    turn = np.argsort([int(np.sum(labels[:place] == label)) for place, label in enumerate(labels)], kind="stable")
    colours = [colour_of[int(labels[place])] for place in turn]
    axes.scatter(points[turn, 0], points[turn, 1], s=POINT, c=colours, linewidths=0, zorder=2).set_gid(gid)
    for label in class_names:
        own = points[labels == label]
        if len(own):
            x, y = np.median(own, axis=0)
            outline = [withStroke(linewidth=1.8, foreground="white")]
            axes.text(x, y, str(label), size=SMALL, weight="bold", ha="center", va="center", zorder=3, path_effects=outline)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.04)
    if not flat.axes[0]:
        axes.set_xticks([])
        axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)


def _nearest(sources: Sequence[ImageGroup], own: Sequence[Array], column: int) -> list[str]:
    """Return the lines below a panel: shares of images nearest to their own class's mean, in all channels."""
    labels = [source.labels for source in sources]
    themselves = nearest_own_class(own[column], labels[column], own[column], labels[column])
    lines = [f"nearest to own class: {themselves:.0f} %"]
    if sources[0].real and column:
        across = nearest_own_class(own[0], labels[0], own[column], labels[column])
        lines.append(f"real ones to their class here: {across:.0f} %")
    return lines


def _caption(sources: Sequence[ImageGroup], config: FeaturesConfig) -> str:
    classes = len({int(label) for source in sources for label in source.labels})
    start = "started from PCA" if config.seed is None else f"started at random, seed {config.seed}"
    how = (
        f"t-SNE (perplexity {config.perplexity:g}, {start}): who is near whom; sizes of clusters, distances between them and axes mean nothing"
        if config.projection == "tsne"
        else "PCA: the two directions of most variance, in running standard deviations, with the share of the variance they hold"
    )
    return (
        "A point is an image: the mean over positions of each channel at a BatchNorm layer's input, in running standard deviations. "
        f"Each row is one projection of all images together, made without labels; grey: the images of the other panels. {how}. "
        f"Numbers and colours: classes, as asked of the generator or as labelled. Below: share of images nearest to their own class's mean, in all channels "
        f"(chance: {100 / classes:.0f} %); of real images, by the means of that panel. Shown: "
        + "; ".join(f"{source.about}, {len(source.labels)} images" for source in sources)
        + "."
    )
