"""Settings of the choice of bits by layer, free of torch."""

import re

from pydantic import Field, field_validator, model_validator

from clusterq_common.settings import Settings

UNITS = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?b|b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that a text such as `400kB`, `1.5MiB` or `250000` names.

    Raises:
        ValueError: it is no size.

    Examples:
        >>> parse_size("400kB"), parse_size("1.5 MiB"), parse_size("250000")
        (400000, 1572864, 250000)
    """
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError("expected a number and a unit, such as 400kB, 1.5MB or 2MiB")
    size = int(float(match[1]) * UNITS[(match[2] or "b").lower()])
    if size < 1:
        raise ValueError("expected at least one byte")
    return size


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
            parse_size(text)
        return text

    @model_validator(mode="after")
    def _one_aim(self) -> "BitChoice":
        aims = [name for name in ("average_bits", "target_size", "max_drop") if getattr(self, name) is not None]
        if len(aims) > 1:
            raise ValueError(f"{' and '.join(aims)} exclude each other, expected one of them; leave the others out")
        return self

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
