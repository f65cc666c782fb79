"""Settings of a program's execution and of its output for people, free of torch."""

from typing import Literal

from pydantic import Field

from clusterq_common.settings import Settings

Device = Literal["auto", "cpu", "cuda"]


class RuntimeConfig(Settings):
    """Seed, device, threads and precision. Except for the seed, these settings change results by rounding only."""

    seed: int = Field(0, ge=0, description="seed of every random draw")
    device: Device = Field("auto", description="auto: the GPU where there is one")
    amp: Literal["auto", "off", "bf16"] = Field(
        "auto",
        description="bf16 autocast around training convolutions; auto: on GPUs that have it, and for a generator or a bank of images on CPUs "
        "with instructions for it",
    )
    deterministic: bool = Field(
        True,
        description="on CUDA: ask for kernels that give the same bytes each time; off is somewhat faster",
        json_schema_extra={"flag": "--deterministic/--no-deterministic"},
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; torch's own choice if left out")


class OutputConfig(Settings):
    """Output of a run for people. Nothing here changes a result."""

    report: bool = Field(
        True,
        description="draw report.html when the run ends",
        json_schema_extra={"flag": "--report/--no-report"},
    )
    tensorboard: bool = Field(
        False,
        description="write what goes into metrics.jsonl, and grids of images, as TensorBoard's events, too: into tensorboard/ in the run's "
        "folder; needs the extra: pip install '.[tensorboard]' in the checkout",
        json_schema_extra={"flag": "--tensorboard/--no-tensorboard"},
    )
