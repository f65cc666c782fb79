"""Where and how a program runs: settings only, free of torch."""

from typing import Literal

from pydantic import Field

from clusterq_common.runtime.settings import Settings


class RuntimeConfig(Settings):
    """Seed, device, threads and precision. Apart from the seed nothing here changes what is computed, only its rounding."""

    seed: int = Field(0, ge=0, description="seed of every random draw")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where there is one")
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
