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

    batchnorm: Literal["fold", "fold-clip", "fold-all", "keep"] = Field(
        "fold",
        description="fold: into the convolution before it, wherever every integer stays what it is but for its sign; fold-clip: also where "
        "the lowest integer of a type, which has no negative, moves by one step, and says how many did; fold-all: there a zero-point of "
        "-1 instead, which slows runtimes down and which not every one takes; keep: as layers of their own",
    )
    integers: Integers = Field(
        "packed",
        description="packed: weights in the narrowest type that holds them, of 2, 4 and 8 bits; int4: of 4 and 8; int8: all in 8, also "
        "activations, which integer kernels want",
    )
    activation_types: Literal["own", "unsigned"] = Field(
        "own",
        description="own: signed grids of activations in signed types; unsigned: the same integers, moved into unsigned types with a "
        "zero-point in the middle",
    )
    opset: int | None = Field(
        None,
        ge=OLDEST_OPSET,
        le=NEWEST_OPSET,
        description="version of ONNX's operators; 18 for weights of 8 bits, 21 for 4, 25 for 2 if left out",
    )
    fixed_batch: int | None = Field(
        None, ge=1, description="take exactly so many images at once; any number if left out (the axis is called batch)"
    )
    with_preprocessing: bool = Field(
        False,
        description="take pixels, uint8 (N, H, W, channels), of the right size, and normalise them inside the graph; float32 "
        "(N, channels, H, W), normalised, if left out",
    )
