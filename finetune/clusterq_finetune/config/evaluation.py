"""Settings of evaluation: how real images are read."""

from pydantic import Field, field_validator

from clusterq_common.settings import Settings
from clusterq_common.teacher.spec import Geometry, Interpolation, PerChannel


class EvaluationConfig(Settings):
    """How real images are read: resized and cropped where that is not as known for the teacher's family, and scaled where they are deep."""

    crop_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="side of the centre crop over the resized image's shorter side; as known for the architecture (mostly 0.875) if "
        "left out",
    )
    interpolation: Interpolation | None = Field(
        None, description="of that resizing; as known for the architecture (mostly bilinear) if left out"
    )

    pixel_range: PerChannel | None = Field(
        None,
        description="LOW,HIGH: the values that are black and white in images of more than eight bits; 16 bits are scaled by their depth if "
        "left out, 32 bits and floats need it",
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
        return known.model_copy(update=self.model_dump(include=set(Geometry.model_fields), exclude_none=True))
