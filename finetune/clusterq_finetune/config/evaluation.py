"""Settings of evaluation: how real images are read."""

from typing import Annotated, Any, Final, Literal

from pydantic import AliasChoices, Field, PlainValidator, field_validator

from clusterq_common.settings import Settings
from clusterq_common.teacher.spec import Geometry, Interpolation, PerChannel

OFF: Final = "off"


def _share(value: Any) -> float | Literal["off"]:
    """A crop share, or `off`; YAML reads the bare word as False."""
    if value is False or value == OFF:
        return OFF
    try:
        share = float(value) if isinstance(value, str | float | int) and value is not True else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError("must be above 0 and at most 1, or off")
    return share


CropPct = Annotated[float | Literal["off"], PlainValidator(_share)]


class EvaluationConfig(Settings):
    """Reading of real images: resizing and cropping other than known for the teacher's family, and scaling of deep pixels."""

    crop_pct: CropPct | None = Field(
        None,
        validation_alias=AliasChoices("crop_pct", "crop_share"),
        description="share of the centre crop in the resized image, along the side that fits; off: no crop, the whole image is squeezed into the "
        "input's size; if left out as known for the architecture (mostly 0.875, off up to 64 pixels; 1 for inputs that are not square)",
    )
    interpolation: Interpolation | None = Field(
        None, description="of that resizing; as known for the architecture (mostly bilinear) if left out"
    )

    pixel_range: PerChannel | None = Field(
        None,
        description="LOW,HIGH: the values that are black and white in images of more than eight bits; 16 bits are scaled by their depth if "
        "left out, 32 bits, signed bytes and floats need it",
    )

    @field_validator("pixel_range")
    @classmethod
    def _two_rising(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values is not None and not (len(values) == 2 and values[0] < values[1]):
            raise ValueError("it must be two numbers, the lower one first, as 0,4095")
        return values

    @property
    def black_and_white(self) -> tuple[float, float] | None:
        """`pixel_range` as a pair."""
        return None if self.pixel_range is None else (self.pixel_range[0], self.pixel_range[1])

    def override_with(self, known: Geometry) -> Geometry:
        """`known` with what is given here on top."""
        given = self.model_dump(include=set(Geometry.model_fields), exclude_none=True)
        return known.model_copy(update={name: None if value == OFF else value for name, value in given.items()})
