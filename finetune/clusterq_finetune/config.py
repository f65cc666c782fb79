"""Settings of fine-tuning. Free of torch."""

from typing import Any, Literal

from pydantic import Field, model_validator

from clusterq_common.quant.config import QuantConfig
from clusterq_common.runtime.config import RuntimeConfig
from clusterq_common.runtime.settings import Settings
from clusterq_common.teacher.spec import Geometry, Interpolation, TeacherConfig


class RecipeConfig(Settings):
    """How the student learns from the shards: ClusterQ Eq. 9 with Adam on a cosine."""

    epochs: int = Field(10, ge=0, description="passes over the training shards; 0: calibrate only")
    batch_size: int = Field(128, ge=1, description="images in a batch")
    lr: float = Field(3e-4, gt=0, description="Adam's learning rate at the start of the cosine")
    ce_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy with the shards' labels")
    kl_weight: float = Field(20.0, ge=0, description="weight of T^2 KL(teacher || student), mean over the batch; Eq. 9 has 1")
    temperature: float = Field(20.0, gt=0, description="T of the distillation")
    augment: Literal["none", "flip", "crop-flip"] = Field(
        "none",
        description="light augmentation of the synthetic images; with none, the shards' logits replace the teacher's forward",
    )
    calibration_images: int = Field(1024, ge=1, description="synthetic images that set the activation ranges")
    workers: int = Field(0, ge=0, description="processes that decode images")
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints, written at ends of epochs")

    @model_validator(mode="after")
    def _learns_something(self) -> "RecipeConfig":
        if self.ce_weight == self.kl_weight == 0:
            raise ValueError("ce_weight and kl_weight are both 0, so nothing would be learned")
        return self


class EvaluationConfig(Settings):
    """How real images are resized and cropped where that is not as known for the teacher's family."""

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

    def over(self, known: Geometry) -> Geometry:
        """`known` with what is given here on top."""
        return known.model_copy(update=self.model_dump(exclude_none=True))


class FinetuneConfig(Settings):
    """Everything that determines a fine-tuned student, apart from the shards' content; saved as config.yaml."""

    shards: str
    teacher: TeacherConfig
    quant: QuantConfig = QuantConfig()
    recipe: RecipeConfig = RecipeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()


SECTIONS: dict[str, type[Settings]] = {
    "teacher": TeacherConfig,
    "quant": QuantConfig,
    "recipe": RecipeConfig,
    "evaluation": EvaluationConfig,
    "runtime": RuntimeConfig,
}


def resolve(flags: dict[str, Any], shards: str, teacher: TeacherConfig) -> FinetuneConfig:
    """Defaults and the flags that were given: section -> field -> value.

    Raises:
        ClusterqError: a value that does not fit.
    """
    given = {section: values for section, values in flags.items() if section != "teacher"}
    return FinetuneConfig.checked({"shards": shards, "teacher": teacher.model_dump(), **given})
