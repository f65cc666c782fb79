"""How every figure looks, and how it becomes files: the same input gives the same bytes."""

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
from clusterq_common.files import atomic_write
from clusterq_finetune.figures.config import FORMATS, FileConfig

# Ten colours that stay apart for colour-blind eyes, too: Petroff, "Accessible color sequences for data visualization", 2021.
CLASS_COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
# For few lines: Okabe and Ito, 2008, without yellow; no two lines share a marker and a dash either.
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
REAL_COLOUR, FAINT, TEXT, QUIET = "#000000", "#d9d9d9", "#000000", "#555555"
MARKERS, DASHES = ("o", "s", "^", "D", "v", "P"), ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)))
# Inches: what two columns of a page leave; a page at most.
PAGE_WIDTH, PAGE_HEIGHT = 7.2, 10.0
SIZE, SMALL = 8.0, 6.5
LINE_HEIGHT = 1.3 / 72
CHARACTERS_AN_INCH, HEAD_CHARACTERS_AN_INCH = 20.5, 12.0
MARGIN = 0.06
ODD_BIT = 0.00123457
# Numbers inside an SVG's tags, with more decimals than are of use.
TAG, DECIMALS = re.compile(r"<[^>]*>"), re.compile(r"-?\d+\.\d{5,}")

# Of any type of value, as matplotlib has them.
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
    # Text stays text: it can be searched, read aloud and set in another font.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    # Names inside an SVG are hashes: of this instead of chance.
    "svg.hashsalt": "clusterq",
}


@dataclass(frozen=True)
class Drawing:
    """A figure before it is a file.

    Attributes:
        figure: matplotlib's.
        title: one line.
        caption: what it shows, sentences.
        numbers: what is drawn, a row each, the same columns in all; empty where there are only pictures.
    """

    figure: Figure
    title: str
    caption: str
    numbers: list[dict[str, Any]]


@contextmanager
def style() -> Iterator[None]:
    """Draw as stated here, whatever the user's own matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def new_figure(width: float, height: float, title: str, caption: str, files: FileConfig) -> Figure:
    """An empty figure of so many inches for what is drawn, with room for the title above and the caption below."""
    wrapped = textwrap.wrap(caption, int(CHARACTERS_AN_INCH * (width - 2 * MARGIN))) if files.caption else []
    heads = textwrap.wrap(title, int(HEAD_CHARACTERS_AN_INCH * (width - 2 * MARGIN)))
    top = 1.3 * (SIZE + 1) / 72 * len(heads) + 2 * MARGIN
    bottom = LINE_HEIGHT * SMALL * len(wrapped) + 2 * MARGIN if wrapped else 0.0
    total = height + top + bottom
    figure = Figure(figsize=(width, total), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    # Constrained layout takes these; matplotlib annotates the engine that all layouts derive from.
    engine.set(rect=(0, bottom / total, 1, height / total), w_pad=0.04, h_pad=0.04)  # type: ignore[call-arg]
    left = MARGIN / width
    figure.text(left, 1 - MARGIN / total, "\n".join(heads), size=SIZE + 1, weight="bold", va="top", linespacing=1.3)
    if wrapped:
        figure.text(left, MARGIN / total, "\n".join(wrapped), size=SMALL, color=QUIET, va="bottom", linespacing=1.3)
    return figure


def mosaic(pixels: Tensor, columns: int) -> tuple[Any, int, int]:
    """Images (N, C, S, S) uint8 row by row as one picture, and the side of an image and of the white gap in its pixels."""
    count, channels, size, _ = pixels.shape
    gap = max(1, size // 16)
    rows = -(-count // columns)
    sheet = np.full((rows * (size + gap) - gap, columns * (size + gap) - gap, 3), 255, dtype=np.uint8)
    for place in range(count):
        image = pixels[place].permute(1, 2, 0).numpy()
        top, left = (place // columns) * (size + gap), (place % columns) * (size + gap)
        sheet[top : top + size, left : left + size] = np.repeat(image, 3, axis=2) if channels == 1 else image
    return sheet, size, gap


def show_pixels(axes: Axes, sheet: Any) -> None:
    """A picture without axes, its pixels as they are."""
    axes.imshow(sheet, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def files_of(out: Path, files: FileConfig, given: Collection[str]) -> dict[str, Path]:
    """The files to write, by format: `out` with each ending, or `out` itself where it has one.

    Args:
        out: as on the command line.
        files: settings.
        given: names of those settings that were asked for.

    Raises:
        ClusterqError: an ending beside --format, or dots per inch without a png.
    """
    ending = out.suffix.removeprefix(".").lower()
    if ending in FORMATS and "format" in given:
        raise ClusterqError(
            f"--out: {out} has an ending, and --format asks for {', '.join(files.format)}, expected one of both; leave one out."
        )
    found = {ending: out} if ending in FORMATS else {kind: out.with_name(f"{out.name}.{kind}") for kind in files.format}
    if "dpi" in given and "png" not in found:
        raise ClusterqError(f"--dpi: no png is written, only {', '.join(found)}, expected one that has dots; leave --dpi out.")
    return found


def write(drawing: Drawing, where: dict[str, Path], files: FileConfig) -> None:
    """Write each file, atomically; missing folders are made.

    Raises:
        ClusterqError: a table is asked for of a figure without numbers, or a file cannot be written.
    """
    if "csv" in where and not drawing.numbers:
        raise ClusterqError("--format: csv, but this figure holds pictures alone, expected png, svg or pdf; leave csv out.")
    _settle(drawing.figure)
    for kind, path in where.items():
        data = _table(drawing.numbers) if kind == "csv" else _rendered(drawing, kind, files)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
        except OSError as error:
            raise ClusterqError(
                f"--out: {path} cannot be written ({error.strerror}), expected room in a folder of yours; choose another --out."
            ) from error


def _settle(figure: Figure) -> None:
    """Lay out once, the same for all formats, and cut off the last digits of places and limits. They differ from run to run: the solver of
    the layout goes through its variables in the order of their addresses."""
    with style():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    width, height = (72 * inches for inches in figure.get_size_inches())
    for axes in figure.axes:
        left, bottom, across, up = axes.get_position().bounds
        # From here on nothing is fitted any more, neither places to images nor limits to places.
        axes.set_aspect("auto")
        axes.set_position(
            (_point(left, width), _point(bottom, height), _point(across, width), _point(up, height)),
        )
        axes.set_xlim(*(float(f"{end:.7g}") for end in axes.get_xlim()))
        axes.set_ylim(*(float(f"{end:.7g}") for end in axes.get_ylim()))


def _point(share: float, whole: float) -> float:
    """A share of so many points, to a hundredth of a point and a bit: on a half of the last decimal that is written a sum's last bit would
    decide to which side it goes."""
    return (round(share * whole, 2) + ODD_BIT) / whole


def _rendered(drawing: Drawing, kind: str, files: FileConfig) -> bytes:
    # Dates would differ from run to run; matplotlib leaves out what is None.
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Title": drawing.title, "Description": drawing.caption},
        "svg": {"Title": drawing.title, "Description": drawing.caption, "Date": None},
        "pdf": {"Title": drawing.title, "Subject": drawing.caption, "CreationDate": None},
    }
    buffer = io.BytesIO()
    # Fonts and names inside are settled only now.
    with style():
        drawing.figure.savefig(buffer, format=kind, dpi=files.dpi, metadata=metadata[kind])
    if kind != "svg":
        return buffer.getvalue()
    # Four decimals of a point are beyond any printer; they halve the file.
    return TAG.sub(lambda tag: DECIMALS.sub(lambda one: f"{float(one[0]):.4f}", tag[0]), buffer.getvalue().decode()).encode()


def _table(numbers: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(numbers[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else csv_cell(v) for name, v in row.items()} for row in numbers)
    return buffer.getvalue()
