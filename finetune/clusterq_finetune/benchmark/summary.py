"""The result of a benchmark in words, and as a table."""

from typing import Any

KERNELS_SHOWN = 6


def summary_lines(result: dict[str, Any]) -> list[str]:
    """Return the result for a person: a line of facts, the table, and lines on kernels and images."""
    about, sizes, runtime = result["file"], result["bytes"], result["runtime"]
    share = f", {sizes['file'] / sizes['float']:.3f} of float's {sizes['float']:,}" if "float" in sizes else ""
    lines = [
        f"{about['path']}: {about['bits']}, {sizes['file']:,} bytes{share}",
        f"{runtime} {result['versions'][runtime]}, {result['threads']} threads, {result['processor']}; medians of {result['turns']} turns, "
        "intervals of 95 %",
        "",
        *_table(result["latency"], "float" in sizes),
        "",
    ]
    for name, kernels in result["kernels"].items():
        lines.append(
            f"{name}: {kernels['integer_layers']} of {kernels['layers']} convolutions and matrix products in integers, "
            f"{100 * kernels['integer_share']:.0f} % of the time: {_shown(kernels['kernels'])}"
        )
    return [*lines, *_images(result)]


def _table(rows: list[dict[str, Any]], compared: bool) -> list[str]:
    heads = ["batch", "ms", "images/s", *(["float ms", "float images/s", "of float's time"] if compared else [])]
    body = []
    for row in rows:
        cells = [f"{row['batch']}", f"{row['milliseconds']['file'][0]:.2f}", f"{row['images_per_second']['file']:.0f}"]
        if compared:
            middle, low, high = row["ratio"]
            cells += [f"{row['milliseconds']['float'][0]:.2f}", f"{row['images_per_second']['float']:.0f}"]
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        body.append(cells)
    marked = [f"| {' | '.join(cells)} |" for cells in (heads, *body)]
    return [marked[0], "|" + "---|" * len(heads), *marked[1:]]


def _shown(kernels: list[dict[str, Any]]) -> str:
    shown = [
        f"{one['operator']} {one['calls']} x{' (integers)' if one['integers'] else ''} {100 * one['share']:.0f} %"
        for one in kernels[:KERNELS_SHOWN]
    ]
    return ", ".join(shown)


def _images(result: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("float", "file"):
        images = result.get("real_images", {}).get(name)
        if images:
            low, high = images["top1_interval"]
            agrees = "" if images["agreement"] is None else f", same class as float on {images['agreement']:.2f} %"
            lines.append(
                f"{name}: top-1 {images['top1']:.2f} % ({low:.2f} to {high:.2f}) on {images['images']} real images{agrees}"
            )
    synthetic = result.get("synthetic_images")
    if synthetic:
        agrees = f", same class as float on {synthetic['file']['agreement']:.2f} %" if "float" in synthetic else ""
        lines.append(
            f"file: names the label on {synthetic['file']['names_the_label']:.2f} % of {synthetic['images']} synthetic images "
            f"({synthetic['split']}){agrees}"
        )
    return lines
