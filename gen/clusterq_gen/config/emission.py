"""Settings of emission: which images the shards hold, and how they are stored."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from clusterq_common.settings import Settings
from clusterq_common.shards.manifest import SplitName
from clusterq_gen.bank.config import BankConfig


class EmitConfig(Settings):
    """Selection and storage of the images in the shards."""

    per_class: int = Field(512, ge=1, description="training images wanted for each class")
    images: int | None = Field(
        None,
        ge=1,
        description="training images altogether, at most: fewer of each class where there are many, but at least one; `per_class` alone lifts a "
        "preset's limit",
    )
    heldout_per_class: int | None = Field(
        None,
        ge=0,
        description="images for each class in the held-out split; a tenth of those in the training split if left out",
    )
    labels: Literal["asked", "teacher"] | None = Field(
        None,
        description="asked: an image is one of the class that a generator was asked for; teacher: of the class that the teacher sees in it, "
        "as long as that class wants images, so that images between classes are not lost; if left out teacher where images are refined for no "
        "class, else asked",
    )
    keep_misclassified: bool = Field(
        False,
        description="keep images that the teacher takes for another class; by default they are replaced",
        json_schema_extra={"flag": "--keep-misclassified/--drop-misclassified"},
    )
    refine_steps: int = Field(
        0,
        ge=0,
        description="steps that a generator's images are optimised for, a batch at a time, before the teacher judges them: their "
        "BatchNorm statistics come near the stored ones (ZeroQ's loss, started at the generator's images); 0: none",
    )
    refine_lr: float = Field(0.05, gt=0, description="refinement: images' learning rate (Adam), on half a cosine down to zero")
    refine_class_weight: float = Field(
        0.0,
        ge=0,
        description="refinement: weight of the class's cross-entropy beside a BatchNorm distance of weight 1; 0: no class",
    )
    refine_batch: int = Field(100, ge=2, description="refinement: images whose statistics are taken together, at most")
    store_logits: bool = Field(
        True, description="store the teacher's logits with each image", json_schema_extra={"flag": "--logits/--no-logits"}
    )

    class_names: str | None = Field(None, description="file with one class name a line, in index order, for the manifest")
    license: str | None = Field(
        None, description="licence under which the shards are passed on, e.g. CC-BY-4.0, for the manifest"
    )
    note: str | None = Field(None, description="free text for the manifest and the dataset card")
    samples_per_shard: int | None = Field(
        None, ge=1, description="images in a shard; if left out as many as fit into 1 GiB uncompressed, at most 8192"
    )
    workers: int = Field(0, ge=0, description="processes that encode images; 0: the main process does it")

    @model_validator(mode="after")
    def _consistent(self) -> "EmitConfig":
        if self.keep_misclassified and self.labels == "teacher":
            raise ValueError("keep_misclassified has no meaning where labels are the teacher's: it contradicts none of them")
        return self

    @field_validator("class_names")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        # Absolute, because the saved configuration is read from other folders, too.
        return None if path is None else str(Path(path).resolve())

    @property
    def refinement(self) -> BankConfig | None:
        """Settings of the refinement; None where images are not refined.

        ZeroQ's term for the images' own mean 0 and deviation 1 is left out: not every normalisation is that of the training data.
        """
        if not self.refine_steps:
            return None
        return BankConfig(
            bank_steps=self.refine_steps,
            bank_lr=self.refine_lr,
            bank_class_weight=self.refine_class_weight,
            bank_input_weight=0.0,
        )

    @property
    def labelling(self) -> Literal["asked", "teacher"]:
        """Source of the labels of a generator's images: the requested classes or the teacher's top-1."""
        classless = self.refine_steps > 0 and not self.refine_class_weight and not self.keep_misclassified
        return self.labels or ("teacher" if classless else "asked")

    def wanted(self, num_classes: int) -> dict[SplitName, int]:
        """Return the number of images wanted of each class, by split."""
        train = self.per_class if self.images is None else min(self.per_class, max(1, self.images // num_classes))
        return {"train": train, "heldout": max(1, train // 10) if self.heldout_per_class is None else self.heldout_per_class}
