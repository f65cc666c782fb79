"""A benchmark as the command line asks for it: what a file is measured beside, and how both are run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clusterq_common.export.targets import RuntimeName
from clusterq_finetune.benchmark.timing import TURNS


@dataclass(frozen=True)
class FloatSource:
    """Source of the float network that a file is measured beside; none where all is left out.

    Attributes:
        file: a float32 ONNX file for the same images, anyone's.
        student: the run that the measured file is from: its teacher is exported in float where there is no `file`, and `benchmark.json` is
            written into its folder, for its report.
        teacher: fields of the teacher's settings that the command line gives.
    """

    file: Path | None = None
    student: Path | None = None
    teacher: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Settings of running and timing files.

    Attributes:
        batches: batch sizes that are timed; 1 and 16, or the file's own, if left out.
        turns: how often each file is timed at each batch size; the files take turns.
        threads: within a kernel; as many as torch uses if left out.
        runtime: runs both files.
    """

    batches: Sequence[int] | None = None
    turns: int = TURNS
    threads: int | None = None
    runtime: RuntimeName = "onnxruntime"


NO_FLOAT = FloatSource()
DEFAULT_TIMING = Timing()
