"""A run's networks from its folder, to measure them after the run."""

from pathlib import Path

import torch

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import prepare_device, to_device
from clusterq_common.errors import ClusterqError
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.load import load_quantized
from clusterq_common.run.run_folder import CONFIG, STUDENT
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_common.teacher.trust import ARCH, WEIGHTS, refuse_foreign_code
from clusterq_report.measure.analysis import write_analysis
from clusterq_report.run_data import RunData, section


def analyse_folder(folder: Path, given: dict[str, str]) -> None:
    """Load what a run's config names and write its analysis.json.

    Args:
        folder: the run's.
        given: fields of the teacher's settings that the command line gives; they stand above the config.

    Raises:
        ClusterqError: a comparison; code that came with the folder; or see `load_teacher` and `measure`.
    """
    source = RunData.open(folder)
    if source.kind == "comparison":
        raise ClusterqError(
            f"{folder} is a comparison, expected one run's folder; name one of those under {folder / 'students'}.",
            setting="analyse",
        )
    where = str(folder / CONFIG)
    device = prepare_device(RuntimeConfig())
    refuse_foreign_code(source.config, {"teacher": given}, folder / CONFIG, looks_at=(ARCH, WEIGHTS))
    config = TeacherConfig.validated({**section(source.config.get("teacher")), **given}, source=where)
    teacher = load_teacher(config, device=device)
    measure(source, teacher, device)


def measure(source: RunData, teacher: Teacher, device: torch.device) -> None:
    """Write the analysis.json of a run whose teacher is at hand.

    Raises:
        ClusterqError: the run's shards are not there, were made for another teacher, or the student cannot be read.
    """
    folder = source.folder
    if source.manifest is None:
        raise ClusterqError(
            f"{source.shards} does not hold the run's shards, expected a finished set; finish the run, or put them back.",
            setting="analyse",
        )
    if source.manifest.teacher.digest != teacher.digest:
        raise ClusterqError(
            f"the shards were made for a teacher with digest {source.manifest.teacher.digest[:19]}, {folder / CONFIG} names "
            f"one with {teacher.digest[:19]}; put those weights back.",
            setting="analyse",
        )
    student = None
    if (folder / STUDENT).is_file():
        quant = QuantConfig.validated(section(source.config.get("quant")), source=str(folder / CONFIG))
        spec = teacher.spec
        example = torch.zeros(1, *spec.shape, device=device)
        student = load_quantized(folder / STUDENT, teacher.model, quant, example)
        to_device(student, device)
    write_analysis(folder, teacher, student, ShardSet(source.shards, source.manifest), device)
