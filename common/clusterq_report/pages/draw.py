"""Drawing of report.html from a folder. Free of torch: measurements with networks are made before."""

from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write
from clusterq_common.run.run_folder import REPORT
from clusterq_report.pages.comparison import comparison_report
from clusterq_report.pages.finetuned_run import finetuning_report
from clusterq_report.pages.generator_run import generator_report
from clusterq_report.run_data import Source

PAGES = {"generator": generator_report, "fine-tuning": finetuning_report, "comparison": comparison_report}


def draw_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run or of a comparison atomically. Returns its path.

    Args:
        folder: folder to draw; it may be unfinished.
        out: file to write; report.html in the folder when None.

    Raises:
        ClusterqError: the folder is neither, or a file in it was not written by a run.
    """
    source = Source.open(folder)
    path = out or folder / REPORT
    try:
        page = PAGES[source.kind](source).html()
    except RecursionError as error:
        raise ClusterqError(f"{folder} holds values nested deeper than any run writes them; do not use it.") from error
    atomic_write(path, page)
    return path
