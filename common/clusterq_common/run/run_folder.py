"""Layout of a run's folder, and the rules for writing to it."""

import shutil
from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.files import PARTIAL_SUFFIX, final_name
from clusterq_common.setting_names import setting_name

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoints/last.pt"
GENERATOR = "generator.safetensors"
BANK = "bank"
STUDENT = "student.safetensors"
RESULT = "result.json"
CHOSEN_BITS = "bits.json"
PREDICTIONS = "predictions.npz"
SAMPLES = "samples"
TENSORBOARD = "tensorboard"
SHARDS = "shards"
ANALYSIS = "analysis.json"
REPORT = "report.html"
LAYERS = "layers.csv"
# Measurements of a file that the student was exported to.
BENCHMARK = "benchmark.json"
# Rows of a comparison of methods.
TABLE = "table.json"

OWN_FOLDERS = ("checkpoints", BANK, SAMPLES, TENSORBOARD, SHARDS)
# Files that a program may delete on `overwrite`: its own ones, but none that a person added.
OWN_FILES = (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    GENERATOR,
    STUDENT,
    CHOSEN_BITS,
    RESULT,
    PREDICTIONS,
    ANALYSIS,
    REPORT,
    LAYERS,
    BENCHMARK,
    *OWN_FOLDERS,
)


def open_run_folder(folder: Path, *, resume: bool = False, overwrite: bool = False) -> bool:
    """Prepare the folder for a run. Returns whether it holds a run to resume.

    Args:
        folder: the run's folder. It is made if it is missing.
        resume: continue the run in the folder, or start one if the folder is empty.
        overwrite: delete an earlier run's own files first.

    Raises:
        ClusterqError: the folder holds something and neither `resume` nor `overwrite` is given; both are given; or it is a file.
    """
    if resume and overwrite:
        raise ClusterqError(
            f"{setting_name('resume')} and {setting_name('overwrite')} exclude each other; give the one that you mean."
        )
    if folder.exists() and not folder.is_dir():
        raise ClusterqError(f"{folder} is a file, expected a folder; choose another name.", setting="out")
    if resume:
        refuse_links(folder, "resume")
        for path in _leftovers(folder):
            path.unlink()
    filled = folder.is_dir() and any(folder.iterdir())
    if filled and not (resume or overwrite):
        raise ClusterqError(
            f"{folder} is not empty, expected a new or empty folder; use {setting_name('resume')} to go on with the run in it, "
            f"{setting_name('overwrite')} to replace it, or another folder.",
            setting="out",
        )
    if filled and resume and not (folder / CONFIG).is_file():
        raise ClusterqError(
            f"{folder} holds no {CONFIG}, so there is no run to go on with; leave {setting_name('resume')} out.",
            setting="resume",
        )
    if overwrite:
        for name in OWN_FILES:
            _remove(folder / name)
        for path in _leftovers(folder):
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return filled and resume


def refuse_links(folder: Path, setting: str) -> None:
    """Raise an error if a folder of the run is a link, because a received run must not redirect writes.

    Raises:
        ClusterqError: one of them is a link; `setting` named the run.
    """
    linked = next((folder / name for name in OWN_FOLDERS if (folder / name).is_symlink()), None)
    if linked is not None:
        raise ClusterqError(
            f"{linked} is a link, expected a folder of the run's own; put a folder in its place.", setting=setting
        )


def _leftovers(folder: Path) -> list[Path]:
    """Return unfinished files of processes that died. Those among shards are left to the emission."""
    partial = [path for path in folder.glob(f"*{PARTIAL_SUFFIX}") if final_name(path.name) in OWN_FILES]
    for name in set(OWN_FOLDERS) - {SHARDS}:
        if not (folder / name).is_symlink():
            partial += (folder / name).glob(f"*{PARTIAL_SUFFIX}")
    return [path for path in partial if path.is_symlink() or path.is_file()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
