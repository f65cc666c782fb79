"""Settings of the choice of bits by layer, free of torch."""

import re

from pydantic import Field, field_validator, model_validator

from clusterq_common.quantities import parse_bytes
from clusterq_common.settings import Settings


class BitChoice(Settings):
    """Aims of the choice of bits by layer. Without any of them, no bits are chosen."""

    average_bits: float | None = Field(
        None,
        ge=2,
        le=8,
        description="choose the weights' bits of each layer, 2 to 8, so that their mean over all weights is at most this; inputs keep the bits "
        "of `bits`",
    )
    target_size: str | None = Field(
        None,
        description="choose the weights' bits of each layer so that weights, scales and float parameters take at most this: 400kB, 1.5MB, 2MiB; "
        "a file adds a description of some kB",
    )
    max_drop: float | None = Field(
        None,
        gt=0,
        lt=100,
        description="choose the weights' bits of each layer for the smallest model that loses at most so many points, estimated before "
        "training as the share of held-out synthetic images on which it names another class than the teacher",
    )
    average_input_bits: float | None = Field(
        None,
        ge=2,
        le=8,
        description="choose the bits of each layer's input, 2 to 8, so that their mean over all values of these inputs is at most this; "
        "the image keeps 8",
    )
    sensitivity_images: int = Field(
        256,
        ge=1,
        description="synthetic images on which the effect of each layer's rounding is measured, for the choice of bits",
    )

    @field_validator("target_size")
    @classmethod
    def _size(cls, text: str | None) -> str | None:
        if text is not None:
            size = parse_bytes(text)
            if size is None:
                raise ValueError("expected a number and a unit, such as 400kB, 1.5MB or 2MiB")
            if size < 1:
                raise ValueError("expected at least one byte")
        return text

    @model_validator(mode="after")
    def _one_aim(self) -> "BitChoice":
        aims = [name for name in ("average_bits", "target_size", "max_drop") if getattr(self, name) is not None]
        if len(aims) > 1:
            raise ValueError(f"{' and '.join(aims)} exclude each other, expected one of them; leave the others out")
        return self

    @property
    def target_bytes(self) -> int | None:
        """`target_size` as a number of bytes."""
        return None if self.target_size is None else parse_bytes(self.target_size)

    @property
    def weights(self) -> bool:
        """True where bits of weights are chosen."""
        return any(aim is not None for aim in (self.average_bits, self.target_size, self.max_drop))

    @property
    def active(self) -> bool:
        """True where anything is chosen."""
        return self.weights or self.average_input_bits is not None

    @property
    def label(self) -> str:
        """A short name for folders: `average3.5`, `size400kB`, `drop1`, with `-inputs4` where inputs are chosen; empty where nothing is.

        Examples:
            >>> BitChoice(average_bits=3.5, average_input_bits=4).label
            'average3.5-inputs4'
            >>> BitChoice(target_size="400 kB").label
            'size400kB'
        """
        size = None if self.target_size is None else re.sub(r"\s", "", self.target_size)
        aims = [("average", self.average_bits), ("size", size), ("drop", self.max_drop), ("inputs", self.average_input_bits)]
        return "-".join(
            f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}" for name, value in aims if value is not None
        )
