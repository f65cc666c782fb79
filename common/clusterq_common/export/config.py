"""Settings of an exported file, free of torch."""

from typing import Literal

from pydantic import Field

from clusterq_common.settings import Settings

Format = Literal["onnx", "safetensors-int", "pt2"]
Integers = Literal["packed", "int4", "int8"]

# The oldest opset that torch's exporter writes, and the newest one with types that are used here.
OLDEST_OPSET, NEWEST_OPSET = 18, 25


class OnnxConfig(Settings):
    """Conventions of an ONNX file."""

    batchnorm: Literal["fold", "fold-all", "keep"] = Field(
        "fold",
        description="fold: into the convolution before it, wherever every integer stays what it is but for its sign; fold-all: also where "
        "the lowest integer, which has no negative, needs a zero-point of -1 among the weights, which not every runtime takes; keep: as "
        "layers of their own",
    )
    integers: Integers = Field(
        "packed",
        description="packed: weights in the narrowest type that holds them, of 2, 4 and 8 bits; int4: of 4 and 8; int8: all in 8, also "
        "activations, which integer kernels want",
    )
    opset: int | None = Field(
        None,
        ge=OLDEST_OPSET,
        le=NEWEST_OPSET,
        description="version of ONNX's operators; 18 for weights of 8 bits, 21 for 4, 25 for 2 if left out",
    )
