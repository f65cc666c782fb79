"""Page sections from analysis.json: measurements inside the networks."""

from clusterq_common.setting_names import setting_name
from clusterq_report.charts.bars import Bars, bar_chart
from clusterq_report.charts.histogram import grid_histogram
from clusterq_report.charts.lines import Line, line_chart
from clusterq_report.html.page import figure, folded, paragraph, table
from clusterq_report.html.text import number, percent, tag
from clusterq_report.run_data import Source, real, reals, rows, section, word

MOST_HISTOGRAMS = 48


def analysis_of(source: Source) -> dict[str, object]:
    """Return analysis.json if it matches the present student and shards, else an empty dictionary."""
    analysis, result = source.analysis, source.result
    student = section(result.get("student")).get("sha256")
    shards = source.manifest.digest if source.manifest else section(result.get("shards")).get("digest")
    same = student in (None, analysis.get("student")) and shards in (None, analysis.get("shards"))
    return analysis if same else {}


def features(source: Source) -> str:
    """Return figures on the distance of the images' BatchNorm statistics and on the separation of classes, by teacher layer."""
    analysis = analysis_of(source)
    layers, scatter = rows(analysis.get("batchnorm")), rows(analysis.get("scatter"))
    if not layers:
        return paragraph(
            f"Not measured: analysis.json is missing; `report {setting_name('analyse')}` measures it, given the teacher's weights."
        )
    images = number(real(analysis.get("images")))
    lines = [
        Line("mean", [(n, real(layer.get("mean"))) for n, layer in enumerate(layers)]),
        Line("std", [(n, real(layer.get("std"))) for n, layer in enumerate(layers)]),
    ]
    title = "Distance of BatchNorm statistics from the training data's"
    drawn = line_chart(
        lines, title=title, x_label="BatchNorm layer, in order of execution", y_label="running stds", y_range=None
    )
    caption = (
        f"On {images} stored images, in units of each channel's running std. 0: exactly as in training; look for layers that "
        "stand out."
    )
    markup = figure(title, drawn, caption)
    if scatter:
        classes = (
            f"{number(real(analysis.get('scatter_classes')))} classes, {number(real(analysis.get('scatter_images')))} images"
        )
        lines = [Line(name, [(n, real(row.get(name))) for n, row in enumerate(scatter)]) for name in ("between", "within")]
        log = all((real(row.get(name)) or 0) > 0 for row in scatter for name in ("between", "within"))
        drawn = line_chart(
            lines, title="Scatter of classes", x_label="BatchNorm layer, in order of execution", y_label="variance", log=log
        )
        markup += figure(
            "Scatter of classes",
            drawn,
            f"Variance of images' features between and within classes ({classes}), in squared running stds. In deep layers between should "
            "outgrow within; within near zero means that a class has collapsed into one picture.",
        )
    heads = ["layer", "mean off", "std off", "between", "within", "between's share"]
    by_name = {word(row.get("layer")): row for row in scatter}
    listed = []
    for layer in layers:
        row = by_name.get(word(layer.get("layer")), {})
        between, within = real(row.get("between")), real(row.get("within"))
        share = None if between is None or within is None or between + within <= 0 else 100 * between / (between + within)
        figures = [
            number(real(layer.get("mean"))),
            number(real(layer.get("std"))),
            number(between),
            number(within),
            percent(share, 1),
        ]
        listed.append([word(layer.get("layer")), *figures])
    return markup + folded("Every layer", table(heads, listed))


def quantization(source: Source) -> str:
    """Return figures and tables on quantization: errors by layer, ranges, and weights over their grid."""
    analysis = analysis_of(source)
    outputs, sites, weights = (rows(analysis.get(name)) for name in ("outputs", "activations", "weights"))
    if not outputs:
        return ""
    place = {word(row.get("layer")): n for n, row in enumerate(outputs)}
    lines = [Line("output, against the teacher's", [(n, real(row.get("sqnr"))) for n, row in enumerate(outputs)])]
    for name, key in (("weights, against the teacher's", "sqnr_teacher"), ("weights, rounding alone", "sqnr")):
        lines.append(
            Line(
                name,
                [(place[word(row.get("layer"))], real(row.get(key))) for row in weights if word(row.get("layer")) in place],
            )
        )
    lines.append(
        Line(
            "input, rounding and clipping",
            [(place[word(row.get("site"))], real(row.get("sqnr"))) for row in sites if word(row.get("site")) in place],
        )
    )
    title = "Signal to quantization noise by layer"
    drawn = line_chart(
        [line for line in lines if line.points], title=title, x_label="layer, in order of execution", y_label="SQNR, dB"
    )
    images = number(real(analysis.get("images")))
    caption = (
        f"On {images} stored images; 10 dB: the noise has a tenth of the signal's power, 0 dB: as much. Each bit is worth about "
        "6 dB. The output holds the errors of all layers before it. No point: no rounding error at all (weights that lie on their grid)."
    )
    return figure(title, drawn, caption) + _ranges(sites) + _tables(outputs, sites, weights) + _histograms(weights)


def _ranges(sites: list[dict[str, object]]) -> str:
    """Return a figure of each activation's grid range and observed range."""
    ranges = [[real(row.get(key)) for key in ("low", "high", "seen_low", "seen_high")] for row in sites]
    known = [(n, *(value for value in ends if value is not None)) for n, ends in enumerate(ranges) if None not in ends]
    if not known:
        return ""
    covered = [(float(n), low, high) for n, low, high, _, _ in known]
    lines = [
        Line("the grid covers", [(n, high) for n, _, high in covered], covered),
        Line("largest value seen", [(n, high) for n, _, _, _, high in known]),
        Line("least value seen", [(n, low) for n, _, _, low, _ in known]),
    ]
    title = "Ranges of activations"
    drawn = line_chart(lines, title=title, x_label="quantized activation, in order of execution", y_label="value")
    worst = max(((real(row.get("clipped")) or 0.0, word(row.get("site"))) for row in sites), default=(0.0, ""))
    caption = "The band is what the grid covers; what was seen beyond it is clipped. A band far wider than what was seen wastes steps of the grid."
    beyond = f" Most beyond: {percent(100 * worst[0])} of what flows into {worst[1]}." if worst[0] else " Nothing was beyond."
    return figure(title, drawn, caption + beyond)


def _tables(outputs: list[dict[str, object]], sites: list[dict[str, object]], weights: list[dict[str, object]]) -> str:
    by_layer = {word(row.get("layer")): row for row in weights}
    heads = ["layer", "bits", "output dB", "weights to teacher dB", "rounding dB", "weights beyond grid"]
    listed = []
    for row in outputs:
        weight = by_layer.get(word(row.get("layer")), {})
        beyond = real(weight.get("clipped"))
        figures = [
            number(real(value))
            for value in (weight.get("bits"), row.get("sqnr"), weight.get("sqnr_teacher"), weight.get("sqnr"))
        ]
        listed.append([word(row.get("layer")), *figures, percent(None if beyond is None else 100 * beyond)])
    ranges = []
    for row in sites:
        beyond = real(row.get("clipped"))
        figures = [number(real(row.get(key))) for key in ("bits", "low", "high", "seen_low", "seen_high")]
        ranges.append(
            [word(row.get("site")), *figures, percent(None if beyond is None else 100 * beyond), number(real(row.get("sqnr")))]
        )
    heads_of_ranges = ["activation", "bits", "grid from", "to", "seen from", "to", "beyond grid", "dB"]
    return folded("Every layer", table(heads, listed)) + (
        folded("Every range", table(heads_of_ranges, ranges)) if ranges else ""
    )


def _histograms(weights: list[dict[str, object]]) -> str:
    chosen = (
        weights
        if len(weights) <= MOST_HISTOGRAMS
        else [weights[n * len(weights) // MOST_HISTOGRAMS] for n in range(MOST_HISTOGRAMS)]
    )
    drawings = []
    for row in chosen:
        low, high, zero = (int(real(row.get(key)) or 0) for key in ("low", "high", "zero"))
        student, teacher = ([value or 0.0 for value in reals(row.get(key))] for key in ("student", "teacher"))
        if not -300 < low < high < 300:
            continue
        drawings.append(grid_histogram(word(row.get("layer")), low, high, zero, student, teacher))
    if not drawings:
        return ""
    explanation = "Weights against their grid: the student's filled, the teacher's as a line, in steps of each channel's grid; thin lines are grid points."
    explanation += "" if len(chosen) == len(weights) else f" {len(chosen)} of {len(weights)} layers."
    return tag("h3", "Weights") + paragraph(explanation) + tag("div", *drawings, class_="smalls")


def reconstruction(source: Source) -> str:
    """Return a figure of each block's error before and after its rounding was learned."""
    blocks = rows(source.result.get("reconstruction"))
    groups = [Bars(word(row.get("block")), [real(row.get("before")), real(row.get("after"))]) for row in blocks]
    if not groups:
        return ""
    title = "Error of each block before and after its rounding was learned"
    drawn = bar_chart(groups, ["before", "after"], title=title, x_label="squared error relative to the teacher's output")
    return figure(
        title,
        drawn,
        "||student - teacher||² / ||teacher||², on the images it was learned from. After should be the shorter one.",
    )
