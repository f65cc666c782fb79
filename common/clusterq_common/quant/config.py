"""Settings of quantization, free of torch."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from clusterq_common.quant.bits import Bits
from clusterq_common.settings import Settings

Scheme = Literal["symmetric", "asymmetric"]
Granularity = Literal["channel", "tensor"]
RangeMethod = Literal["minmax", "percentile", "mse", "lsq"]


def _entries(value: Any) -> Any:
    """Convert `"a=w8a8,b=w3a3"` to a tuple of its entries; return anything else unchanged."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


LayerBits = Annotated[tuple[str, ...], BeforeValidator(_entries)]


class QuantConfig(Settings):
    """Bits and conventions of the quantized student.

    Weights per output channel or per tensor; activations always per tensor with static ranges.
    """

    bits: str = Field("w4a4", description="bits of weights and activations, each 2-8, or 32 for off: w4a4, w8a8, w4a32")
    quantizer: Scheme = Field(
        "symmetric",
        description="symmetric: zero-point 0, unsigned where the calibrated minimum is not negative (ClusterQ Eq. 2-3); "
        "asymmetric: integer zero-point (the convention of GDFQ's line)",
    )
    signed: bool = Field(
        False, description="keep symmetric grids signed even for inputs that are never negative, as Eq. 2-3 is written"
    )
    narrow_weights: bool = Field(
        False,
        description="leave out the lowest integer of symmetric weight grids (-127 to 127 at 8 bits): every integer has its negative, so "
        "BatchNorm with a negative gamma can be folded exactly",
    )
    weight_granularity: Granularity = Field("channel", description="one weight scale per output channel, or per tensor")
    weight_steps: Literal["auto", "fixed", "learned"] = Field(
        "auto",
        description="weight scales: fixed: set once; learned: trained with the weights, as in LSQ; auto: as the activations', learned for "
        "`range=lsq`",
    )
    range: RangeMethod = Field(
        "lsq",
        description="source of activation ranges: EMA of min/max, percentile, mse (search for the least squared error), "
        "or lsq (start from mse, then learned); weights use mse for lsq and percentile, min/max for minmax",
    )
    percentile: float = Field(99.99, gt=50, le=100, description="share of values kept inside by `range=percentile`")
    first_last_bits: int | None = Field(
        None, description="bits of the first and last layer; the same as all others if left out (the literature often has 8)"
    )
    layer_bits: LayerBits = Field(
        (),
        description="other bits for some layers, pattern=bits with commas between: features.init_block=w8a8,*.conv2=w3a4; a pattern names "
        "a layer or a block, * stands for anything, later ones win, also over `first_last_bits`; the image keeps 8 bits",
    )
    activation_sites: Literal["all", "relu"] = Field(
        "all",
        description="all: the input of every convolution and linear layer; relu: only outputs of ReLU, as in GDFQ's line",
    )
    branch_outputs: bool = Field(
        False, description="also quantize what feeds a residual addition, for runtimes that fuse the addition"
    )
    around_activations: bool = Field(
        False,
        description="also quantize, to 8 bits, what goes into a SiLU, hard swish, sigmoid or hard sigmoid, the gate of a SiLU or hard swish, and what a product "
        "or mean reads of these and of ReLU (squeeze-and-excitation), for runtimes that compute all of it in integers",
    )
    residual_sums: bool = Field(
        False,
        description="also quantize, to 8 bits, what residual additions give and what else they and max poolings read, for runtimes that add and "
        "pool in integers; a layer that reads it has no quantizer of its own at 8 bits",
    )

    @field_validator("bits")
    @classmethod
    def _bits(cls, text: str) -> str:
        return str(Bits.parse(text))

    @field_validator("layer_bits")
    @classmethod
    def _layer_bits(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            if entry.count("=") != 1:
                raise ValueError("expected pattern=bits, e.g. features.init_block=w8a8")
        pairs = (entry.split("=") for entry in entries)
        return tuple(f"{pattern.strip()}={Bits.parse(bits, 'layer_bits')}" for pattern, bits in pairs)

    @field_validator("first_last_bits")
    @classmethod
    def _first_last(cls, bits: int | None) -> int | None:
        if bits is not None and bits != 32 and not 2 <= bits <= 8:
            raise ValueError("expected 2 to 8 bits, or 32 for no quantization")
        return bits

    @model_validator(mode="after")
    def _narrow_has_a_sign(self) -> "QuantConfig":
        if self.narrow_weights and self.quantizer == "asymmetric":
            raise ValueError("narrow_weights belongs to symmetric grids, but quantizer is asymmetric")
        return self

    @property
    def parsed_bits(self) -> Bits:
        """The parsed bit-widths."""
        return Bits.parse(self.bits)

    @property
    def learns_weight_steps(self) -> bool:
        """True where weight scales are trained."""
        return self.weight_steps == "learned" or (self.weight_steps == "auto" and self.range == "lsq")

    @property
    def layer_rules(self) -> list[tuple[str, Bits]]:
        """The parsed `layer_bits`: patterns and their bit-widths."""
        return [(pattern, Bits.parse(bits)) for pattern, bits in (entry.split("=") for entry in self.layer_bits)]
