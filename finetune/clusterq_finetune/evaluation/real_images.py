"""Real images as a command line names them."""

from dataclasses import dataclass, field
from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import Geometry, InputSpec
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.real import ValidationImages, open_validation


@dataclass(frozen=True)
class RealImages:
    """Real images to evaluate on.

    Attributes:
        place: where they are, which may be code of the user's; see `open_validation`.
        classes: file with the names of the class folders in index order; None where the order is known.
        reading: how the images are resized, cropped and read.
    """

    place: Path
    classes: Path | None = None
    reading: EvaluationConfig = field(default_factory=EvaluationConfig)

    def open(self, spec: InputSpec, geometry: Geometry, pixel_range: tuple[float, float] | None = None) -> ValidationImages:
        """List the images without decoding them.

        Args:
            spec: what the networks take.
            geometry: how images are resized and cropped where `reading` does not say it.
            pixel_range: black and white of deep images where `reading` does not say it.

        Raises:
            ClusterqError: see `open_validation`.
        """
        return open_validation(
            self.place,
            spec,
            classes=self.classes,
            geometry=self.reading.override_with(geometry),
            pixel_range=self.reading.black_and_white or pixel_range,
            own=True,
        )


def named_images(val: Path | None, classes: Path | None, reading: EvaluationConfig) -> RealImages | None:
    """Return the real images that a command line names; None for none.

    Raises:
        ClusterqError: a setting is about real images where there are none.
    """
    if val is not None:
        return RealImages(val, classes, reading)
    there_is_none = f"there is no {setting_name('val')}"
    if classes is not None:
        raise ClusterqError(f"{there_is_none}, expected images that it names the classes of; leave it out.", setting="classes")
    if reading.model_fields_set:
        raise ClusterqError(
            f"{there_is_none}, expected real images that it is for; leave it out.", setting=min(reading.model_fields_set)
        )
    return None
