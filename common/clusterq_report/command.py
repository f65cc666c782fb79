"""`report`, as both programs have it, and the report at the end of a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from clusterq_common.errors import ClusterqError
from clusterq_common.files import need_place
from clusterq_common.progress.console import info, print_result, warn
from clusterq_common.run.run_folder import ANALYSIS
from clusterq_common.setting_names import setting_name
from clusterq_report.pages.draw import draw_report
from clusterq_report.run_data import RunData

if TYPE_CHECKING:
    import torch

    from clusterq_common.teacher.load import Teacher


def report(folder: Path, out: Path | None, *, analyse: bool, teacher: dict[str, str] | None = None) -> None:
    """Draw a run or a comparison; torch is imported only to measure.

    Args:
        folder: the run's or the comparison's.
        out: the file; report.html in the folder when None.
        analyse: load teacher and student first and measure them (analysis.json).
        teacher: fields of the teacher's settings that the command line gives, instead of the run's.

    Raises:
        ClusterqError: see `draw_report` and `analyse_folder`.
    """
    need_place("out", out)
    if teacher and not analyse:
        raise ClusterqError(
            f"a report without {setting_name('analyse')} asks no network, expected it beside {setting_name('analyse')}; leave it out.",
            setting=next(iter(teacher)),
        )
    if analyse:
        from clusterq_report.measure.reload import analyse_folder

        analyse_folder(folder, teacher or {})
    path = draw_report(folder, out)
    source = RunData.open(folder)
    if source.kind != "comparison" and not (folder / ANALYSIS).is_file():
        info(
            f"Note: without {ANALYSIS} the figures of single layers are left out; {setting_name('analyse')} measures them, given the teacher's weights."
        )
    print_result(f"report: {path}")


def report_at_end(folder: Path, again: str, teacher: "Teacher | None" = None, device: "torch.device | None" = None) -> None:
    """Draw a run's report after everything else is written. A failure is only a warning.

    It runs in the first process, and measures the networks before where they are given.

    Args:
        folder: of the run, or of a comparison.
        again: the command that tries once more.
        teacher, device: the run's teacher, on that device; nothing is measured without them.
    """
    try:
        if teacher is not None and device is not None:
            from clusterq_report.measure.reload import measure

            measure(RunData.open(folder), teacher, device)
        info(f"report: {draw_report(folder)}")
    except Exception as error:  # the run is finished and whole, whatever happens to its picture
        what = " ".join(f"{type(error).__name__}: {error}".split())
        warn(f"the run is complete, but its report is not ({what}); try `{again} {setting_name('debug')}`.")
