"""`clusterq-finetune export`: a saved student as a file for elsewhere, written once it has been compared with the student."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import Format, OnnxConfig
from clusterq_common.export.description import Description, describe
from clusterq_common.export.for_target import (
    counts_float_convolutions,
    file_for,
    format_for,
    name_and_status,
    refuse_student,
    slower_settings,
)
from clusterq_common.export.qdq import WEIGHT_SUFFIX, size_of
from clusterq_common.export.targets import TargetName
from clusterq_common.files import sha256_file, write_output
from clusterq_common.images.normalise import normalise
from clusterq_common.quant.convert import quantizers
from clusterq_common.run.environment import versions
from clusterq_common.run.extras import need_onnx
from clusterq_common.run.run_folder import RESULT, SHARDS, STUDENT
from clusterq_common.run.seeding import stream
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.manifest import MANIFEST, read_manifest
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.preprocess import describe_preprocessing
from clusterq_finetune.results import read_result
from clusterq_finetune.student import load_student

# Random pixels on which a file is compared with the student.
IMAGES = 16
# A file that names another class more often than this, and whose logits are further apart than this share of the largest one, is wrong.
LEAST_AGREEMENT, MOST_APART = 75.0, 0.1


def export(
    folder: Path,
    kind: Format | None,
    out: Path,
    flags: dict[str, Any],
    *,
    target: TargetName | None = None,
    arch: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the student in `folder` as `out`. Returns what `--json` prints: bytes, and how the file compares with the student.

    Args:
        folder: of the student.
        kind: format; None: the target's, or ONNX.
        out: the file.
        flags: values of `OnnxConfig` that the user gave.
        target: runtime that the other values are for.
        arch: the student's architecture, as the command line names it.
        overwrite: replace a file that is there.

    Raises:
        ClusterqError: see `load_student`, `onnx_model`, `program_file`; flags that the format does not know; a target that cannot run
            the student; `out` exists or cannot be written.
    """
    kind = format_for(target, kind)
    if flags and kind != "onnx":
        name = next(iter(flags)).replace("_", "-")
        raise ClusterqError(
            f"--{name}: --format {kind} has no such choice, expected it with --format onnx alone; leave it out."
        )
    config = OnnxConfig.validated(flags if target is None else file_for(target, flags))
    if out.exists() and not overwrite:
        raise ClusterqError(f"--out: {out} exists, expected a new file; choose another name, or use --overwrite.")
    if kind == "onnx":
        need_onnx(setting_name("format", "onnx"), runtime=True)
    student, spec, saved = load_student(folder, torch.device("cpu"), arch)
    if target is not None:
        weights = (quantizer.bits for name, quantizer in quantizers(student).items() if name.endswith(WEIGHT_SUFFIX))
        refuse_student(target, saved.quant, weights, config)
    description = describe_student(saved, spec, teacher=_teacher_of(folder), student=sha256_file(folder / STUDENT))
    known = {"class_names": _class_names(saved), "target": "" if target is None else name_and_status(target)}
    description = description.model_copy(update=known)
    data, description, twin = _FORMATS[kind](student, spec, description, config)
    compared = {} if twin is None else _compare(student, twin, spec, kind)
    write_output(out, data)
    return {
        "out": str(out),
        "format": kind,
        "bytes": len(data),
        "weights": size_of(student),
        "quantizers": len(quantizers(student)),
        **compared,
        "remarks": [] if target is None else _remarks(target, saved, data),
        "description": description.model_dump(mode="json"),
    }


def _remarks(target: TargetName, saved: FinetuneConfig, data: bytes) -> list[str]:
    """Say what makes a file slower on its target than it could be."""
    remarks = slower_settings(target, saved.quant)
    if counts_float_convolutions(target):
        import onnx

        from clusterq_common.export.float_convolutions import float_convolutions, remark_on

        remarks += remark_on(float_convolutions(onnx.load_from_string(data).graph), saved.quant)
    return remarks


def describe_student(saved: FinetuneConfig, spec: InputSpec, *, teacher: str, student: str) -> Description:
    """Describe a student from the settings saved with it; `teacher` and `student` are digests."""
    geometry = saved.evaluation.override_with(known_geometry(spec.size, saved.teacher.arch))
    return describe(
        saved.teacher.arch,
        saved.quant,
        geometry,
        spec,
        clusterq=versions()["clusterq"],
        teacher=teacher,
        student=student,
        preprocessing=describe_preprocessing(spec, geometry),
    )


def summary_lines(result: dict[str, Any]) -> list[str]:
    """The result for a person."""
    weights, about = result["weights"], result["description"]
    lines = [
        f"{result['out']}: {result['format']}, {result['bytes']:,} bytes; quantized weights {weights['integers']:,} and scales "
        f"{weights['scales']:,} (in float32 {weights['float32']:,})"
    ]
    if about["integers"]:
        lines.append(f"opset {about['opset']}, integers {about['integers']}")
    if about["target"]:
        lines.append(f"made for {about['target']}")
    if about["batchnorm_kept"]:
        lines.append(f"BatchNorm kept as a layer: {', '.join(about['batchnorm_kept'])}")
    if about["weights_clipped"]:
        moved = ", ".join(f"{count} of {name}" for name, count in about["weights_clipped"].items())
        lines.append(f"weights moved by one step of their grid, so that BatchNorm could be folded: {moved}")
    lines += result["remarks"]
    if "largest_logit_difference" in result:
        lines.append(
            f"against the student on {result['compared_on']} images of random pixels: same class on {result['agreement_with_student']:.1f} %, "
            f"logits at most {result['largest_logit_difference']:.2g} apart"
        )
    return lines


# The file's bytes, what it says of itself, and the file as a model, where it can be run.
_Made = tuple[bytes, Description, nn.Module | None]


def _onnx(student: nn.Module, spec: InputSpec, description: Description, config: OnnxConfig) -> _Made:
    from clusterq_common.export.onnx_file import onnx_bytes
    from clusterq_common.export.runtime import OnnxModel

    data, description = onnx_bytes(student, spec, description, config)
    return data, description, OnnxModel(data, optimise=False, threads=1, name=setting_name("format", "onnx"))


def _packed(student: nn.Module, _spec: InputSpec, description: Description, _config: OnnxConfig) -> _Made:
    from clusterq_common.export.packed import packed_file

    return packed_file(student, description), description, None


def _program(student: nn.Module, spec: InputSpec, description: Description, _config: OnnxConfig) -> _Made:
    from clusterq_common.export.program import load_program, program_file

    data = program_file(student, spec, description)
    return data, description, load_program(data)


_FORMATS = {"onnx": _onnx, "safetensors-int": _packed, "pt2": _program}


@torch.no_grad()
def _compare(student: nn.Module, twin: nn.Module, spec: InputSpec, kind: Format) -> dict[str, Any]:
    """Compare the file's logits with the student's on images of random pixels, one by one and all at once.

    Raises:
        ClusterqError: the file is another network.
    """
    shape = (IMAGES, *spec.shape)
    images = normalise(torch.randint(256, shape, generator=stream(0, "export"), dtype=torch.uint8), spec)
    expected: Tensor = student(images)
    logits = torch.cat([twin(images[:1]), twin(images[1:])])
    if logits.shape != expected.shape or not bool(torch.isfinite(logits).all()):
        raise RuntimeError(f"the exported model gives logits of shape {tuple(logits.shape)}, or some that are not finite")
    agreement = 100 * float((logits.argmax(1) == expected.argmax(1)).float().mean())
    apart = float((logits - expected).abs().max())
    if agreement < LEAST_AGREEMENT and apart > MOST_APART * float(expected.abs().max()):
        raise ClusterqError(
            f"--format {kind}: the file names the student's class on {agreement:.0f} % of {IMAGES} images of random pixels and its logits are up to "
            f"{apart:.2g} apart, expected at least {LEAST_AGREEMENT:.0f} %; no file was written: please report this network."
        )
    return {"compared_on": IMAGES, "agreement_with_student": agreement, "largest_logit_difference": apart}


def _class_names(saved: FinetuneConfig) -> tuple[str, ...]:
    """Read the class names of the set that the student learned from; none where that very set is not where it was."""
    folder = Path(saved.shards)
    if saved.shards_digest is None or not (folder / MANIFEST).is_file():
        return ()
    manifest = read_manifest(folder)
    # A stranger's settings could name a set of this user's, whose names are not theirs to have; they cannot know its digest.
    return tuple(manifest.class_names or ()) if manifest.digest == saved.shards_digest else ()


def _teacher_of(folder: Path) -> str:
    """The digest of the teacher's weights, from what lies beside the student; empty where nothing says it."""
    if (folder / RESULT).is_file():
        return str(read_result(folder, "teacher.digest")["teacher"]["digest"])
    shards = folder / SHARDS
    return read_manifest(shards).teacher.digest if (shards / MANIFEST).is_file() else ""
