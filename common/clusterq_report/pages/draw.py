"""Drawing of report.html, and of layers.csv beside it, from a folder. Free of torch: measurements with networks are made before."""

from dataclasses import replace
from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write
from clusterq_common.run.run_folder import LAYERS, REPORT
from clusterq_report.pages.comparison import comparison_report
from clusterq_report.pages.finetuned_run import finetuning_report
from clusterq_report.pages.generator_run import generator_report
from clusterq_report.pages.layers import Layers, costs_csv
from clusterq_report.run_data import RunData

PAGES = {"generator": generator_report, "fine-tuning": finetuning_report, "comparison": comparison_report}


def draw_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run or of a comparison, and the costs of its layers as CSV where they were measured. Returns the page's path.

    The CSV is layers.csv in the run's folder; beside another page it has that page's name, such as page-layers.csv for page.html.

    Args:
        folder: folder to draw; it may be unfinished.
        out: file to write; report.html in the folder when None.

    Raises:
        ClusterqError: the folder is neither, or a file in it was not written by a run.
    """
    source = replace(RunData.open(folder), page=out)
    path = out or folder / REPORT
    try:
        page, layers = PAGES[source.kind](source).html(), Layers.of(source)
    except RecursionError as error:
        raise ClusterqError(f"{folder} holds values nested deeper than any run writes them; do not use it.") from error
    atomic_write(path, page)
    costs = costs_csv(layers)
    if costs:
        atomic_write(folder / LAYERS if out is None else path.with_name(source.costs_csv), costs)
    return path
