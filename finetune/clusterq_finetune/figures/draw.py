"""Common style of the figures, and writing them to files. The same input gives the same bytes."""

import csv
import io
import re
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.escape import csv_cell
from clusterq_common.files import write_output
from clusterq_common.images.contact_sheet import contact_sheet
from clusterq_common.images.normalise import to_array
from clusterq_finetune.figures.config import FORMATS, FileConfig

# Ten colours, distinct also for colour-blind readers: Petroff, "Accessible color sequences for data visualization", 2021.
CLASS_COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
# For few lines: Okabe and Ito, 2008, without yellow. No two lines share a marker or a dash either.
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
REAL_COLOUR, FAINT, QUIET = "#000000", "#d9d9d9", "#555555"
MARKERS, DASHES = ("o", "s", "^", "D", "v", "P"), ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)))
# Inches: width of two columns of a page, and the largest height.
PAGE_WIDTH, PAGE_HEIGHT = 7.2, 10.0
SIZE, SMALL = 8.0, 6.5
LINE_HEIGHT = 1.3 / 72
CHARACTERS_AN_INCH, HEAD_CHARACTERS_AN_INCH = 20.5, 12.0
MARGIN = 0.06
ODD_BIT = 0.00123457
# Numbers inside an SVG's tags with more decimals than needed.
TAG, DECIMALS = re.compile(r"<[^>]*>"), re.compile(r"-?\d+\.\d{5,}")

# Any, as in matplotlib, since the values have different types.
STYLE: Any = {
    "font.size": SIZE,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "axes.titlesize": SIZE,
    "axes.labelsize": SIZE,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": QUIET,
    "lines.linewidth": 1.2,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "image.interpolation": "none",
    # Text stays text, so that it can be searched, read aloud and set in another font.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    # Names inside an SVG are hashes; a fixed salt makes them reproducible.
    "svg.hashsalt": "clusterq",
}


@dataclass(frozen=True)
class Drawing:
    """A figure that is not yet written to a file.

    Attributes:
        figure: the matplotlib figure.
        title: one line.
        caption: description in sentences.
        numbers: the plotted numbers as rows with the same columns; empty for a figure of pictures only.
    """

    figure: Figure
    title: str
    caption: str
    numbers: list[dict[str, Any]]


@contextmanager
def style() -> Iterator[None]:
    """Use this module's style within the block, whatever the user's own matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def new_figure(width: float, height: float, title: str, caption: str, files: FileConfig) -> Figure:
    """Create an empty figure with a drawing area of the given inches, and room for the title above and the caption below."""
    wrapped = textwrap.wrap(caption, int(CHARACTERS_AN_INCH * (width - 2 * MARGIN))) if files.caption else []
    heads = textwrap.wrap(title, int(HEAD_CHARACTERS_AN_INCH * (width - 2 * MARGIN)))
    top = 1.3 * (SIZE + 1) / 72 * len(heads) + 2 * MARGIN
    bottom = LINE_HEIGHT * SMALL * len(wrapped) + 2 * MARGIN if wrapped else 0.0
    total = height + top + bottom
    figure = Figure(figsize=(width, total), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    # Constrained layout accepts these arguments; matplotlib annotates the base class of all layout engines.
    engine.set(rect=(0, bottom / total, 1, height / total), w_pad=0.04, h_pad=0.04)  # type: ignore[call-arg]
    left = MARGIN / width
    figure.text(left, 1 - MARGIN / total, "\n".join(heads), size=SIZE + 1, weight="bold", va="top", linespacing=1.3)
    if wrapped:
        figure.text(left, MARGIN / total, "\n".join(wrapped), size=SMALL, color=QUIET, va="bottom", linespacing=1.3)
    return figure


def mosaic(pixels: Tensor, columns: int) -> tuple[Any, int, int]:
    """Return images (N, C, H, W) uint8 as one picture, row by row, and the pixels of an image's width and of the white gap."""
    _, channels, height, width = pixels.shape
    gap = max(1, max(height, width) // 16)
    sheet = contact_sheet([to_array(image) for image in pixels], columns, gap=gap)
    return np.repeat(sheet, 3, axis=2) if channels == 1 else sheet, width, gap


def show_pixels(axes: Axes, sheet: Any) -> None:
    """Show a picture without axes and without interpolation."""
    axes.imshow(sheet, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def files_of(out: Path, files: FileConfig, given: Collection[str]) -> dict[str, Path]:
    """Return the files to write, by format: `out` with each ending, or `out` itself where it has one.

    Args:
        out: path from the command line.
        files: settings.
        given: names of the settings that the user gave.

    Raises:
        ClusterqError: `out` has an ending and --format is given, too; or dots per inch are given without a png.
    """
    ending = out.suffix.removeprefix(".").lower()
    if ending in FORMATS and "format" in given:
        raise ClusterqError(
            f"--out: {out} has an ending, and --format asks for {', '.join(files.format)}, expected one of both; leave one out."
        )
    paths = {ending: out} if ending in FORMATS else {kind: out.with_name(f"{out.name}.{kind}") for kind in files.format}
    if "dpi" in given and "png" not in paths:
        raise ClusterqError(f"--dpi: no png is written, only {', '.join(paths)}, expected one that has dots; leave --dpi out.")
    return paths


def write(drawing: Drawing, where: dict[str, Path], files: FileConfig) -> None:
    """Write each file atomically, and create missing folders.

    Raises:
        ClusterqError: csv is requested for a figure without numbers, or a file cannot be written.
    """
    if "csv" in where and not drawing.numbers:
        raise ClusterqError("--format: csv, but this figure holds pictures alone, expected png, svg or pdf; leave csv out.")
    _settle(drawing.figure)
    for kind, path in where.items():
        data = _table(drawing.numbers) if kind == "csv" else _rendered(drawing, kind, files)
        write_output(path, data.encode() if isinstance(data, str) else data)


def _settle(figure: Figure) -> None:
    """Compute the layout once, the same for all formats, and round the positions and limits.

    Their last digits differ from run to run, because the layout's solver visits its variables in the order of their addresses.
    """
    with style():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    width, height = (72 * inches for inches in figure.get_size_inches())
    for axes in figure.axes:
        left, bottom, across, up = axes.get_position().bounds
        # From here on positions are fixed: no aspect is adjusted and no limits are fitted.
        axes.set_aspect("auto")
        axes.set_position(
            (_point(left, width), _point(bottom, height), _point(across, width), _point(up, height)),
        )
        axes.set_xlim(*(float(f"{end:.7g}") for end in axes.get_xlim()))
        axes.set_ylim(*(float(f"{end:.7g}") for end in axes.get_ylim()))


def _point(share: float, whole: float) -> float:
    """Round a share of `whole` points to a hundredth of a point, and add a small offset.

    Without the offset, a value on half of the last written decimal could be rounded either way.
    """
    return (round(share * whole, 2) + ODD_BIT) / whole


def _rendered(drawing: Drawing, kind: str, files: FileConfig) -> bytes:
    # Dates would differ from run to run; matplotlib leaves out what is None.
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Title": drawing.title, "Description": drawing.caption},
        "svg": {"Title": drawing.title, "Description": drawing.caption, "Date": None},
        "pdf": {"Title": drawing.title, "Subject": drawing.caption, "CreationDate": None},
    }
    buffer = io.BytesIO()
    # Fonts and the names inside are chosen only at this point.
    with style():
        drawing.figure.savefig(buffer, format=kind, dpi=files.dpi, metadata=metadata[kind])
    if kind != "svg":
        return buffer.getvalue()
    # Four decimals of a point are finer than any printer, and halve the file.
    return TAG.sub(lambda tag: DECIMALS.sub(lambda one: f"{float(one[0]):.4f}", tag[0]), buffer.getvalue().decode()).encode()


def _table(numbers: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(numbers[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else csv_cell(v) for name, v in row.items()} for row in numbers)
    return buffer.getvalue()
