"""Page sections from analysis.json: measurements inside the networks."""

from typing import Any

from clusterq_common.quantities import count, number, percent
from clusterq_common.setting_names import setting_name
from clusterq_report.charts.bars import Bars, bar_chart, grid_histogram
from clusterq_report.charts.lines import Line, line_chart, small_multiples
from clusterq_report.charts.svg import usable
from clusterq_report.html.blocks import Block, Figure, Folded, Paragraph, Table
from clusterq_report.pages.layers import Layers, cost_table
from clusterq_report.run_data import RunData, real, reals, rows, word

MOST_HISTOGRAMS = 48
LAYER_AXIS = "layer, by its number"
NUMBERED = "The table of layers has the names of the numbers; a BatchNorm layer has the number of the layer before it."


def features(source: RunData) -> list[Block]:
    """Return figures on the distance of the images' BatchNorm statistics and on the separation of classes, by teacher layer."""
    layers = Layers.of(source)
    norms, scatter = layers.rows("batchnorm"), layers.rows("scatter")
    if not norms:
        return [
            Paragraph(
                f"Not measured: analysis.json is missing; `report {setting_name('analyse')}` measures it, given the teacher's weights."
            )
        ]
    names = [word(row.get("layer")) for row in norms]
    places = layers.places(names)
    at = {float(place): layers.label(name) for place, name in zip(places, names, strict=True)}
    title = "Distance of BatchNorm statistics from the training data's"
    lines = [Line(key, [(n, real(row.get(key))) for n, row in zip(places, norms, strict=True)]) for key in ("mean", "std")]
    drawn = line_chart(lines, title=title, x_label=LAYER_AXIS, y_label="running stds", places=at)
    images = count(real(layers.analysis.get("images")), "stored image")
    caption = f"On {images}, in units of each channel's running std. 0: exactly as in training; look for layers that stand out. {NUMBERED}"
    blocks: list[Block] = [Figure(title, drawn, caption)]
    if scatter:
        blocks.append(_scatter(layers, scatter))
    heads = ["number", "BatchNorm layer", "mean off", "std off", "between", "within", "between's share"]
    by_name = {word(row.get("layer")): row for row in scatter}
    listed = []
    for place, name, row in zip(places, names, norms, strict=True):
        spread = by_name.get(name, {})
        between, within = real(spread.get("between")), real(spread.get("within"))
        share = None if between is None or within is None or between + within <= 0 else 100 * between / (between + within)
        figures = [number(value) for value in (real(row.get("mean")), real(row.get("std")), between, within)]
        listed.append([str(place), name, *figures, percent(share, 1)])
    return [*blocks, Folded("Every BatchNorm layer", [Table(heads, listed, words=2, sortable=True)])]


def _scatter(layers: Layers, scatter: list[dict[str, Any]]) -> Figure:
    names = [word(row.get("layer")) for row in scatter]
    places = layers.places(names)
    lines = [
        Line(key, [(n, real(row.get(key))) for n, row in zip(places, scatter, strict=True)]) for key in ("between", "within")
    ]
    log = all((y or 0) > 0 for line in lines for _, y in line.points)
    at = {float(place): layers.label(name) for place, name in zip(places, names, strict=True)}
    title = "Scatter of classes"
    drawn = line_chart(lines, title=title, x_label=LAYER_AXIS, y_label="variance", log=log, places=at)
    classes = count(real(layers.analysis.get("scatter_classes")), "class", "classes")
    images = count(real(layers.analysis.get("scatter_images")), "image")
    caption = (
        f"Variance of images' features between and within classes ({classes}, {images}), in squared running stds. In deep layers between "
        "should outgrow within; within near zero means that a class has collapsed into one picture."
    )
    return Figure(title, drawn, caption)


def quantization(source: RunData) -> list[Block]:
    """Return the table of layers' costs, and figures on quantization: errors by layer, ranges, and weights over their grid."""
    layers = Layers.of(source)
    outputs, sites, weights = (layers.rows(name) for name in ("outputs", "activations", "weights"))
    costs = cost_table(layers, source.costs_csv)
    if not outputs:
        return costs
    lines = [
        _by_layer(layers, "output, against the teacher's", outputs, "layer", "sqnr"),
        _by_layer(layers, "weights, against the teacher's", weights, "layer", "sqnr_teacher"),
        _by_layer(layers, "weights, rounding alone", weights, "layer", "sqnr"),
        _by_layer(layers, "input, rounding and clipping", sites, "site", "sqnr"),
    ]
    title = "Signal to quantization noise by layer"
    at = {float(place): layers.label(name) for name, place in reversed(layers.numbers.items())}
    shown = [line for line in lines if usable(y for _, y in line.points)]
    drawn = line_chart(shown, title=title, x_label=LAYER_AXIS, y_label="SQNR, dB", places=at)
    caption = (
        f"On {count(real(layers.analysis.get('images')), 'stored image')}; 10 dB: the noise has a tenth of the signal's power, 0 dB: as much. "
        "Each bit is worth about 6 dB. The output holds the errors of all layers before it. No point: no rounding error at all (weights that "
        "lie on their grid)."
    )
    return [*costs, Figure(title, drawn, caption), *_ranges(layers, sites), *_histograms(layers, weights)]


def _by_layer(layers: Layers, name: str, entries: list[dict[str, Any]], key: str, value: str) -> Line:
    numbered = [(layers.numbers.get(word(row.get(key))), real(row.get(value))) for row in entries]
    return Line(name, [(place, y) for place, y in numbered if place is not None])


def _ranges(layers: Layers, sites: list[dict[str, Any]]) -> list[Block]:
    """Return a figure and a table of each activation's grid range and observed range."""
    names = [word(row.get("site")) for row in sites]
    places = layers.places(names)
    ends = [[real(row.get(key)) for key in ("low", "high", "seen_low", "seen_high")] for row in sites]
    known = [
        (float(n), *(v for v in values if v is not None)) for n, values in zip(places, ends, strict=True) if None not in values
    ]
    if not known:
        return []
    lines = [
        Line("the grid covers", [(n, high) for n, _, high, _, _ in known], [(n, low, high) for n, low, high, _, _ in known]),
        Line("largest value seen", [(n, high) for n, _, _, _, high in known]),
        Line("least value seen", [(n, low) for n, _, _, low, _ in known]),
    ]
    numbered = all(name in layers.numbers for name in names)
    axis = "layer whose input it is, by its number" if numbered else "quantized activation, in order of execution"
    at = {float(place): layers.label(name) for place, name in zip(places, names, strict=True)}
    title = "Ranges of activations"
    drawn = line_chart(lines, title=title, x_label=axis, y_label="value", places=at)
    share, worst = max((real(row.get("clipped")) or 0.0, word(row.get("site"))) for row in sites)
    caption = "The band is what the grid covers; what was seen beyond it is clipped. A band far wider than what was seen wastes steps of the grid."
    caption += (
        f" Most beyond: {percent(100 * share)} of what flows into layer {layers.label(worst)}."
        if share
        else " Nothing was beyond."
    )
    heads = ["number", "activation", "bits", "grid from", "to", "seen from", "to", "beyond grid", "dB"]
    listed = []
    for place, row in zip(places, sites, strict=True):
        beyond = real(row.get("clipped"))
        figures = [number(real(row.get(key))) for key in ("bits", "low", "high", "seen_low", "seen_high")]
        figures += [percent(None if beyond is None else 100 * beyond), number(real(row.get("sqnr")))]
        listed.append([str(place), word(row.get("site")), *figures])
    return [Figure(title, drawn, caption), Folded("Every range", [Table(heads, listed, words=2, sortable=True)])]


def _histograms(layers: Layers, weights: list[dict[str, Any]]) -> list[Block]:
    chosen = weights
    if len(weights) > MOST_HISTOGRAMS:
        chosen = [weights[n * len(weights) // MOST_HISTOGRAMS] for n in range(MOST_HISTOGRAMS)]
    drawn = []
    for row in chosen:
        low, high, zero = (int(real(row.get(key)) or 0) for key in ("low", "high", "zero"))
        student, teacher = ([value or 0.0 for value in reals(row.get(key))] for key in ("student", "teacher"))
        if -300 < low < high < 300:
            name = layers.label(word(row.get("layer")))
            drawn.append((name, grid_histogram(low, high, zero, student, teacher, f"weights of {name}")))
    if not drawn:
        return []
    caption = "The student's filled, the teacher's as a line, in steps of each channel's grid; thin lines are grid points."
    caption += "" if len(chosen) == len(weights) else f" {len(chosen)} of {len(weights)} layers."
    return [Figure("Weights against their grid", small_multiples(drawn), caption, wide=True)]


def reconstruction(source: RunData) -> list[Block]:
    """Return a figure of each block's error before and after its rounding was learned."""
    blocks = rows(source.result.get("reconstruction"))
    if not blocks:
        return []
    numbered = Layers.of(source)
    groups = [Bars(numbered.label(word(row.get("block"))), [real(row.get("before")), real(row.get("after"))]) for row in blocks]
    title = "Error of each block before and after its rounding was learned"
    drawn = bar_chart(groups, ["before", "after"], title=title, x_label="error relative to the teacher's output")
    caption = "||student - teacher||² / ||teacher||², on the images it was learned from. After should be the shorter one."
    return [Figure(title, drawn, caption)]
