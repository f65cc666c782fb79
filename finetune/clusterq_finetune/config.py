"""Settings of fine-tuning: recipes on top of defaults. Free of torch."""

from typing import Annotated, Any, Final, Literal

from pydantic import AliasChoices, Field, PlainValidator, field_validator, model_validator

from clusterq_common.device.config import OutputConfig, RuntimeConfig
from clusterq_common.quant.choice_config import BitChoice
from clusterq_common.quant.config import QuantConfig
from clusterq_common.settings import Settings, merged
from clusterq_common.teacher.spec import Geometry, Interpolation, PerChannel, TeacherConfig

RecipeName = Literal["fast", "paper", "best"]


# Steps of an epoch where a set is small and nothing else was asked for: a student needs so many, however few images there are.
LEAST_STEPS = 40


class RecipeConfig(Settings):
    """Learning of the student from the shards: ClusterQ Eq. 9 and what may be done around it."""

    recipe: RecipeName = Field(
        "fast",
        description="source of the defaults; fast: reconstruction and distillation, minutes on two cores; paper: Eq. 9 and GDFQ's "
        "schedule; best: as fast with twice the steps, for two bits",
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
    schedule: Literal["cosine", "step", "constant"] = Field(
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
        """The commands' default: blocks reconstructed, then distilled; minutes on two cores.

        Examples:
            >>> import clusterq as cq
            >>> cq.Recipe.fast(epochs=2).reconstruct
            'block'
        """
        return cls(**{"recipe": "fast", **RECIPES["fast"], **changes})

    @classmethod
    def best(cls, **changes: Any) -> "RecipeConfig":
        """As `fast` with twice the steps, for two bits."""
        return cls(**{"recipe": "best", **RECIPES["best"], **changes})

    @classmethod
    def paper(cls, *, imagenet_sized: bool = False, **changes: Any) -> "RecipeConfig":
        """ClusterQ's Eq. 9 on GDFQ's schedule; `imagenet_sized`: with its values for images of more than 64 pixels on the longer side."""
        return cls(**{"recipe": "paper", **RECIPES["paper"], **(PAPER_IMAGENET if imagenet_sized else {}), **changes})

    @classmethod
    def calibrated(cls, **changes: Any) -> "RecipeConfig":
        """Nothing is trained: ranges, and BatchNorm statistics and biases that fit rounded weights.

        Examples:
            >>> import clusterq as cq
            >>> cq.Recipe.calibrated().epochs
            0
        """
        return cls(**{"batchnorm": "corrected", "epochs": 0, **changes})

    def steps(self, samples: int) -> int | None:
        """Steps of an epoch over so many samples; None: one pass."""
        if self.steps_per_epoch is None and -(-samples // self.batch_size) < LEAST_STEPS:
            return LEAST_STEPS
        return self.steps_per_epoch or None

    @property
    def changes_images(self) -> bool:
        """Return whether networks see other images than those that the stored logits belong to."""
        return self.augment != "none" or self.low_pass > 0

    @property
    def asks_teacher(self) -> bool:
        """Return whether each step needs a teacher forward, whatever is stored."""
        return self.changes_images or self.feature_weight > 0


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
        given = self.model_dump(include=set(Geometry.model_fields), exclude_none=True)
        return known.model_copy(update={name: None if value == OFF else value for name, value in given.items()})


class FinetuneConfig(Settings):
    """Everything that determines a fine-tuned student, apart from the shards' content; saved as config.yaml."""

    shards: str
    # Which set that was: a resumed run learns from the same images, wherever they lie by then. None in configs of older versions.
    shards_digest: str | None = None
    teacher: TeacherConfig
    quant: QuantConfig = QuantConfig()
    choice: BitChoice = BitChoice()
    recipe: RecipeConfig = RecipeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    output: OutputConfig = OutputConfig()


SECTIONS: dict[str, type[Settings]] = {
    "teacher": TeacherConfig,
    "quant": QuantConfig,
    "choice": BitChoice,
    "recipe": RecipeConfig,
    "evaluation": EvaluationConfig,
    "runtime": RuntimeConfig,
    "output": OutputConfig,
}

# What each recipe changes in the defaults above.
RECIPES: dict[RecipeName, dict[str, Any]] = {
    # docs/results.md: reconstruction first is worth two points at W3A3 and forty at W2A2; what half its steps lose is within the noise but for W2A2.
    "fast": {"batchnorm": "corrected", "reconstruct": "block", "epochs": 5, "select": "guarded"},
    "paper": {
        "epochs": 200,
        "steps_per_epoch": 200,
        "batch_size": 200,
        "optimizer": "sgd",
        "lr": 1e-4,
        "lr_unit": "absolute",
        "schedule": "step",
        "weight_decay": 1e-4,
        "kl_weight": 1.0,
    },
    "best": {"batchnorm": "corrected", "reconstruct": "block", "reconstruct_steps": 500, "select": "guarded"},
}
# GDFQ's values for ImageNet, above 64 pixels on the longer side.
PAPER_IMAGENET = {"batch_size": 16, "lr": 1e-6}


def resolve(
    flags: dict[str, Any], shards: str, teacher: TeacherConfig, *, digest: str | None = None, imagenet_sized: bool = False
) -> FinetuneConfig:
    """Defaults, then the recipe, then the flags that were given: section -> field -> value.

    `digest` is that of the set in the folder `shards`.

    Raises:
        ClusterqError: a value that does not fit.
    """
    given = {section: values for section, values in flags.items() if section != "teacher"}
    recipe = given.get("recipe", {}).get("recipe", "fast")
    values = dict(RECIPES.get(recipe, {}))
    if recipe == "paper" and imagenet_sized:
        values |= PAPER_IMAGENET
    base = {"shards": shards, "shards_digest": digest, "teacher": teacher.model_dump(), "recipe": values}
    return FinetuneConfig.validated(merged(base, given))


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
