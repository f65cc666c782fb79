"""Settings of a recipe: how a student learns from the shards."""

from typing import Any, Literal

from pydantic import AliasChoices, Field, model_validator

from clusterq_common.schedules import Schedule
from clusterq_common.settings import Settings
from clusterq_finetune.config.named_recipes import PAPER_IMAGENET, RECIPES, RecipeName

# Steps of an epoch where a set is small and nothing else was asked for: a student needs so many, however few images there are.
LEAST_STEPS = 40


class RecipeConfig(Settings):
    """Learning of the student from the shards: ClusterQ Eq. 9 and what may be done around it."""

    recipe: RecipeName = Field(
        "fast",
        description="source of the defaults; fast: reconstruction and distillation, minutes on two cores; paper: Eq. 9 and GDFQ's "
        "schedule; best: as fast with twice the steps, for two bits; calibrated: nothing is trained",
    )
    epochs: int = Field(10, ge=0, description="passes over the training shards; 0: calibrate (and reconstruct) only")
    steps_per_epoch: int | None = Field(
        None,
        ge=0,
        description=f"steps in an epoch; 0: one pass over the shards; if left out one pass, or {LEAST_STEPS} where that is fewer: a small set "
        "is gone through several times",
    )
    batch_size: int = Field(128, ge=1, description="images in a batch, of all processes together")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="adam, or sgd with Nesterov momentum 0.9")
    lr: float = Field(5e-3, gt=0, description="learning rate at the start")
    lr_unit: Literal["absolute", "relative"] = Field(
        "relative",
        description="relative: updates scaled by the size of each output channel's weights, 0.01 being one per cent; absolute: as the "
        "optimizer has it",
    )
    schedule: Schedule = Field(
        "cosine", description="of the learning rate: cosine to zero, x0.1 at epochs 100, 200 and 300, or constant"
    )
    warmup_steps: int = Field(
        0, ge=0, description="steps over which the learning rate rises from zero, before its schedule counts"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="on weights of convolutions and linear layers; never on BatchNorm, biases and quantizer steps"
    )
    ce_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy with the shards' labels")
    kl_weight: float = Field(20.0, ge=0, description="weight of T^2 KL(teacher || student), mean over the batch; Eq. 9 has 1")
    temperature: float = Field(20.0, gt=0, description="T of the distillation")
    feature_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the relative squared distance of student and teacher after each block; 0: none. Costs a teacher forward "
        "each step",
    )
    ce_min_confidence: float = Field(
        0.0,
        ge=0,
        lt=1,
        validation_alias=AliasChoices("ce_min_confidence", "sure"),
        description="cross-entropy only where the teacher's confidence in the label is at least this; 0: everywhere",
    )
    low_pass: float = Field(
        0.0, ge=0, le=8, description="blur of the synthetic images, the Gaussian's standard deviation in pixels; 0: none"
    )
    augment: Literal["none", "flip", "crop-flip"] = Field("none", description="light augmentation of the synthetic images")
    teacher_logits: Literal["auto", "stored", "recomputed"] = Field(
        "auto",
        description="stored: the shards' (float16), checked against the teacher; recomputed: a teacher forward each step; auto: stored "
        "where there are any and images are neither augmented nor blurred, nor features asked for",
    )
    batchnorm: Literal["frozen", "recalibrated", "corrected"] = Field(
        "frozen",
        description="BatchNorm statistics: frozen: the teacher's; recalibrated: measured once in the quantized student on synthetic "
        "images, then frozen; corrected: the teacher's, moved so that each channel has the mean and spread on them that it has in the teacher, "
        "before reconstruction and after each block of it, then frozen; biases of convolutions and linear layers likewise",
    )
    weight_ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of an exponential mean of the weights, which then is the student; 0: the last weights",
    )
    select: Literal["last", "guarded", "heldout"] = Field(
        "last",
        description="last: the student of the last epoch; guarded: the same, unless the one before the first epoch has less KL on the "
        "held-out synthetic images; heldout: the one with the least of all",
    )
    reconstruct: Literal["none", "layer", "block"] = Field(
        "none",
        description="before the epochs, learn the weights' rounding (AdaRound) so that each layer, or each residual unit (BRECQ), gives "
        "what the teacher's gives; with `epochs=0` nothing else is trained",
    )
    reconstruct_steps: int = Field(250, ge=1, description="steps for each layer or block")
    reconstruct_batch_size: int = Field(32, ge=1, description="images in a batch of the reconstruction")
    reconstruct_images: int = Field(1024, ge=1, description="synthetic images that blocks are reconstructed on")
    reconstruct_lr: float = Field(
        0.05, gt=0, description="learning rate of the rounding; times the steps about 20, as in BRECQ (0.001 over 20,000)"
    )
    rounding_weight: float = Field(
        100.0,
        ge=0,
        description="weight of the term that makes each weight decide for up or down, in shares of the error that it has",
    )
    drop_probability: float = Field(
        0.5, ge=0, le=1, description="share of activations left in float at random while a block is reconstructed (QDrop)"
    )
    weight_step_lr: float = Field(
        1e-3,
        ge=0,
        description="learning rate of the weights' steps beside the rounding, relative to the step (Genie); 0: fixed",
    )
    activation_step_lr: float = Field(
        2e-3,
        ge=0,
        description="learning rate of learned activation steps in the reconstruction, relative to the step; 0: fixed",
    )
    reconstruct_gigabytes: float = Field(
        4.0, ge=0, description="memory for the inputs and outputs of a block; larger ones are computed again for each batch"
    )
    compile: bool = Field(
        False,
        description="compile the student for the steps of the epochs (torch.compile): a minute or so at first, then faster; a CPU needs a C++ "
        "compiler for it",
        json_schema_extra={"flag": "--compile/--no-compile"},
    )
    cuda_graphs: bool = Field(
        False,
        description="record the steps of reconstruction and of the epochs as CUDA graphs and replay them, so that small networks do not wait for "
        "Python",
        json_schema_extra={"flag": "--cuda-graphs/--no-cuda-graphs"},
    )
    calibration_images: int = Field(1024, ge=1, description="synthetic images that set the activation ranges")
    workers: int = Field(0, ge=0, description="processes that decode images")
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints")

    @model_validator(mode="after")
    def _consistent(self) -> "RecipeConfig":
        if self.ce_weight == self.kl_weight == self.feature_weight == 0:
            raise ValueError("ce_weight, kl_weight and feature_weight are all 0, so nothing would be learned")
        if self.teacher_logits == "stored" and self.changes_images:
            raise ValueError("stored belongs to the stored images, but augment or low_pass changes them")
        if self.teacher_logits == "stored" and self.feature_weight:
            raise ValueError("stored spares the teacher, but feature_weight needs its features in each step")
        if self.compile and self.feature_weight:
            raise ValueError("feature_weight looks into the student, which a compiled one (compile) does not allow")
        return self

    @classmethod
    def fast(cls, **changes: Any) -> "RecipeConfig":
        """Return the recipe `fast`: reconstruction and distillation.

        It is the commands' default, and takes minutes on two cores.

        Examples:
            >>> import clusterq as cq
            >>> cq.Recipe.fast(epochs=2).reconstruct
            'block'
        """
        return cls(**{"recipe": "fast", **RECIPES["fast"], **changes})

    @classmethod
    def best(cls, **changes: Any) -> "RecipeConfig":
        """Return the recipe `best`: `fast` with twice the steps.

        It is for two bits.
        """
        return cls(**{"recipe": "best", **RECIPES["best"], **changes})

    @classmethod
    def paper(cls, *, imagenet_sized: bool = False, **changes: Any) -> "RecipeConfig":
        """Return the recipe `paper`: Eq. 9 on GDFQ's schedule.

        Args:
            imagenet_sized: take its values for images of more than 64 pixels on the longer side.
            **changes: settings that differ.
        """
        return cls(**{"recipe": "paper", **RECIPES["paper"], **(PAPER_IMAGENET if imagenet_sized else {}), **changes})

    @classmethod
    def calibrated(cls, **changes: Any) -> "RecipeConfig":
        """Return the recipe `calibrated`: no training.

        It sets ranges, and BatchNorm statistics and biases that fit rounded weights.

        Examples:
            >>> import clusterq as cq
            >>> cq.Recipe.calibrated().epochs
            0
        """
        return cls(**{"recipe": "calibrated", **RECIPES["calibrated"], **changes})

    def steps(self, samples: int) -> int | None:
        """Steps of an epoch over so many samples; None: one pass."""
        if self.steps_per_epoch is None and -(-samples // self.batch_size) < LEAST_STEPS:
            return LEAST_STEPS
        return self.steps_per_epoch or None

    def steps_of_epoch(self, samples: int) -> int:
        """Return the number of steps of an epoch over so many samples: those asked for, or one pass."""
        return self.steps(samples) or -(-samples // self.batch_size)

    @property
    def changes_images(self) -> bool:
        """Return whether networks see other images than those that the stored logits belong to."""
        return self.augment != "none" or self.low_pass > 0

    @property
    def asks_teacher(self) -> bool:
        """Return whether each step needs a teacher forward, whatever is stored."""
        return self.changes_images or self.feature_weight > 0


def recipe_notes() -> dict[str, dict[str, str]]:
    """Notes on each recipe for the help: section -> field -> the default recipe's value, then those that differ."""
    plain = RecipeConfig().model_dump()
    usual, *others = ({**plain, **values} for values in RECIPES.values())
    notes = {}
    for name in {name: None for values in RECIPES.values() for name in values}:
        apart = [
            f"; {recipe}: {values[name]}"
            for recipe, values in zip(list(RECIPES)[1:], others, strict=True)
            if values[name] != usual[name]
        ]
        notes[name] = f"{usual[name]}{''.join(apart)}"
    return {"recipe": notes}
