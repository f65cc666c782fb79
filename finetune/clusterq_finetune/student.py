"""A student on disk: written after fine-tuning, read back for evaluation."""

from pathlib import Path

import torch
from torch import nn

from clusterq_common.device.setup import to_device
from clusterq_common.errors import ClusterqError
from clusterq_common.quant.load import load_quantized
from clusterq_common.run.run_folder import CONFIG, STUDENT
from clusterq_common.settings import merged, read_yaml
from clusterq_common.teacher.load import build_architecture
from clusterq_common.teacher.spec import InputSpec
from clusterq_common.teacher.trust import ARCH, refuse_foreign_code
from clusterq_finetune.config import FinetuneConfig


def load_student(folder: Path, device: torch.device, arch: str | None = None) -> tuple[nn.Module, InputSpec, FinetuneConfig]:
    """Rebuild a student, ranges included; it needs the architecture but not the teacher's weights.

    The folder is that of a fine-tuning, or of a generator's run: then it is the student that was trained beside the generator.

    Args:
        folder: the student's.
        device: where it goes.
        arch: the architecture as this call's user names it; the folder's config says it when None.

    Raises:
        ClusterqError: the folder holds no student, one that does not fit its config, or code of a stranger.
    """
    path = folder / STUDENT
    if not path.is_file():
        raise ClusterqError(
            f"{folder} holds no {STUDENT}, expected the folder of a finished fine-tuning (finetune-w4a4 or the like), or of "
            "a generator's run.",
            setting="student",
        )
    config = _config_of(folder, {} if arch is None else {"arch": arch})
    model, spec = build_architecture(config.teacher)
    example = torch.zeros(1, *spec.shape)
    student = load_quantized(path, model, config.quant, example)
    to_device(student, device)
    return student, spec, config


def _config_of(folder: Path, given: dict[str, str]) -> FinetuneConfig:
    """The settings saved with a student, its teacher's as given instead. A generator's run has more sections, which say nothing about its student."""
    saved = read_yaml(folder / CONFIG)
    # The student has the weights; the teacher's are not read.
    refuse_foreign_code(saved, {"teacher": given}, folder / CONFIG, looks_at=(ARCH,))
    values = merged(saved, {"teacher": given})
    if "generator" in values:
        values = {"shards": str(folder), **{name: values[name] for name in ("teacher", "quant", "runtime") if name in values}}
    return FinetuneConfig.validated(values, source=str(folder / CONFIG))
