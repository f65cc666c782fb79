"""Settings of generator training: the paper's values as defaults, presets on top. Free of torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clusterq_common.device.config import OutputConfig, RuntimeConfig
from clusterq_common.errors import did_you_mean
from clusterq_common.quant.config import QuantConfig
from clusterq_common.settings import Settings
from clusterq_common.shards.manifest import SplitName
from clusterq_common.teacher.spec import TeacherConfig, absolute_factory, is_factory
from clusterq_gen.bank.config import BANK_METHODS, BankConfig

GENERATOR_METHODS = ("clusterq", "gdfq", "adadfq", "qimera")
Preset = Literal["auto", "paper-cifar", "paper-imagenet", "quick"]
Units = Literal["raw", "std"]


# Values of the setting `generator` in configurations saved before `conditioning` replaced it.
FORMER_GENERATORS = {"auto": "paper", "embedding": "product", "conditional-bn": "batchnorm"}


class MethodConfig(Settings):
    """Losses and their weights (ClusterQ Eq. 4-9, AdaDFQ, Qimera, HAST, IntraQ)."""

    method: str = Field(
        "clusterq",
        description="clusterq: class and BatchNorm statistics, FDA and DE; gdfq: the same without FDA and DE; adadfq: a game between "
        "generator and student over what a sample teaches; qimera: gdfq with images between classes; zeroq, dsg, intraq: no generator, "
        "a bank of images is optimised; path/to/file.py:function: one of your own",
        json_schema_extra={"choices": [*GENERATOR_METHODS, *BANK_METHODS]},
    )
    alpha_bns: float = Field(0.1, ge=0, description="a1, weight of the BatchNorm-statistics distance (Eq. 7)")
    alpha_fda: float = Field(0.9, ge=0, description="a2, weight of feature distribution alignment (Eq. 8)")
    alpha_de: float = Field(0.6, ge=0, description="a3, weight of diversity enhancement (Eq. 8)")
    alpha_spread: float = Field(
        0.0,
        ge=0,
        description="weight of the spread within classes: what images of one class lack of the two shares below; 0: not asked for",
    )
    spread_images: float = Field(
        0.85,
        ge=0,
        le=1,
        description="share of the variance of images, as cells (8x8 of a square), that is to lie within classes; CIFAR's real images have 0.86 to 0.89",
    )
    spread_layers: float = Field(
        0.5,
        ge=0,
        le=1,
        description="the same share of the variance of channel means at each BatchNorm layer; real images have 0.6 to 0.7 in most, 0.3 to 0.5 in "
        "the last",
    )
    fda_reduction: Literal["sum", "mean"] = Field(
        "mean", description="how FDA and DE reduce over present classes, semantic layers and channels"
    )
    bns_units: Units = Field(
        "raw",
        description="units in which BatchNorm statistics are compared: raw: means and variances, in the BatchNorm inputs' own units (the paper); "
        "std: means and stds, in each channel's running std in the teacher, so that a1 means the same in every layer and for every teacher",
    )
    fda_units: Units = Field(
        "raw",
        description="units of FDA, DE and their lambdas: raw: the BatchNorm inputs' own units (the paper); std: each channel's running "
        "std in the teacher, so that weights mean the same for every teacher",
    )
    ema_rate: float = Field(0.2, ge=0, le=1, description="b, share of the batch in the centroids' update (Eq. 5)")
    de_noise: Literal["gaussian", "uniform"] = Field(
        "gaussian", description="distribution of DE's targets around the centroids; uniform: within plus/minus the given values"
    )
    de_mean_std: float = Field(0.3, ge=0, description="lambda_mu, spread of DE's target around a centroid's mean (Eq. 6)")
    de_std_std: float = Field(0.15, ge=0, description="lambda_sigma, spread of DE's target around a centroid's std (Eq. 6)")
    start_layer: int | None = Field(
        None,
        ge=0,
        description="l_st, the first BatchNorm layer (0 = first to run) that counts as semantic; the deep half if left out",
    )
    kl_weight: float = Field(1.0, ge=0, description="g, weight of T^2 KL in the in-loop student's loss (Eq. 9)")
    temperature: float = Field(20.0, gt=0, description="T of the distillation, and of adadfq's student")
    alpha_ds: float = Field(
        0.2,
        ge=0,
        description="adadfq: weight of L_ds, which seeks what the teacher knows and the student not (paper: 0.3 for MobileNetV2 at w4a4)",
    )
    alpha_as: float = Field(0.1, ge=0, description="adadfq: weight of L_as, which seeks what both know")
    lambda_l: float = Field(
        0.1, ge=0, le=1, description="adadfq: least agreement H' of an image, 0 to 1 (paper: 0.3 for ResNet-18)"
    )
    lambda_u: float = Field(0.8, ge=0, le=1, description="adadfq: most agreement H' of an image, 0 to 1")
    beta: float = Field(1.0, ge=0, description="adadfq: weight of both L_ds and L_as, on top of their own")
    gamma: float = Field(1.0, ge=0, description="adadfq: weight of the BatchNorm-statistics distance")
    mix_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        description="probability that an image in training mixes classes, with any method (Qimera); if left out 0.4 for qimera and 0 for "
        "the others; shards hold images of one class",
    )
    mix_classes: int | None = Field(
        None, ge=2, description="classes in a mixed image; if left out a tenth of the teacher's, at least 2, as Qimera has it"
    )
    hard_gamma: float = Field(
        0.0,
        ge=0,
        description="images weigh (1 - p)^gamma in the class loss, p the teacher's probability of the class, so that hard ones count more "
        "(HAST: 2 on CIFAR, 0.5 on ImageNet); 0: all alike; unused by adadfq",
    )
    soft_target: float = Field(
        1.0,
        gt=0,
        le=1,
        description="the probability of its class that an image is to reach is drawn between this and 1 (IntraQ: 0.95 on CIFAR-10); 1: "
        "certainty; unused by adadfq",
    )

    @property
    def mixing(self) -> float:
        """Probability that an image mixes classes."""
        return (0.4 if self.method == "qimera" else 0.0) if self.mix_probability is None else self.mix_probability

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        names = (*GENERATOR_METHODS, *BANK_METHODS)
        if method not in names and not is_factory(method):
            raise ValueError(f"must be one of {', '.join(names)}, or path/to/file.py:function{did_you_mean(method, names)}")
        # Absolute, because the saved configuration is read from other folders, too.
        return absolute_factory(method) if is_factory(method) else method

    @model_validator(mode="after")
    def _consistent(self) -> "MethodConfig":
        if self.lambda_l > self.lambda_u:
            raise ValueError(f"lambda_l ({self.lambda_l}) must not exceed lambda_u ({self.lambda_u})")
        return self


class GeneratorConfig(Settings):
    """Architecture of the generator."""

    conditioning: Literal["paper", "product", "concat", "sum", "batchnorm"] = Field(
        "paper",
        description="how the class enters the generator; concat: noise and class embedding side by side; sum: 0.5 noise + 2 embedding; "
        "product: noise times embedding (GDFQ, CIFAR); batchnorm: class-conditional BatchNorm (GDFQ, ImageNet); paper: product up to 64 "
        "pixels, batchnorm above. With product and batchnorm the teacher sees the class asked for only after thousands of steps",
    )
    latent_size: int = Field(100, ge=1, description="length of the noise vector")
    width: int = Field(128, ge=2, description="channels of the generator's first block; the second has half")

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Read `generator`, the setting's name in older configurations."""
        if isinstance(values, dict) and values.get("generator") in FORMER_GENERATORS and "conditioning" not in values:
            values = {**values, "conditioning": FORMER_GENERATORS[values["generator"]]}
            del values["generator"]
        return values


class TrainConfig(Settings):
    """Budget and optimisers of the alternating training."""

    epochs: int = Field(400, ge=1, description="generator epochs")
    steps_per_epoch: int = Field(200, ge=1, description="generator steps in an epoch")
    warmup_epochs: int = Field(50, ge=0, description="epochs on Eq. 7 alone, before centroids and student exist")
    batch_size: int = Field(200, ge=1, description="images in a batch, of all processes together")
    classes_per_batch: int | None = Field(
        None, ge=1, description="distinct classes in a batch; if left out as many as leave four images each"
    )
    lr: float = Field(1e-3, gt=0, description="generator's learning rate (Adam, betas 0.5 and 0.999)")
    student_lr: float = Field(1e-4, gt=0, description="in-loop student's learning rate (SGD, Nesterov 0.9, weight decay 1e-4)")
    schedule: Literal["step", "cosine"] = Field(
        "step", description="learning rates: x0.1 at epochs 100, 200, 300 (the paper), or cosine to zero"
    )
    cuda_graphs: bool = Field(
        False,
        description="record a step (of training, of a bank, of refinement) as a CUDA graph and replay it, so that small networks do not wait "
        "for Python",
        json_schema_extra={"flag": "--cuda-graphs/--no-cuda-graphs"},
    )
    compile: bool = Field(
        False,
        description="compile the networks for training steps (torch.compile): a minute or so at first, then faster; a CPU needs a C++ compiler "
        "for it",
        json_schema_extra={"flag": "--compile/--no-compile"},
    )
    gradient_norm_every: int = Field(
        25, ge=1, description="steps between two records of each term's gradient norm and of each layer's centroid drift"
    )
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be below epochs ({self.epochs})")
        if self.classes_per_batch and self.classes_per_batch > self.batch_size:
            raise ValueError(f"classes_per_batch ({self.classes_per_batch}) exceeds batch_size ({self.batch_size})")
        return self


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


class GenConfig(Settings):
    """Everything that determines a generator run; saved as config.yaml."""

    preset: Preset = Field("auto", description="source of the defaults")
    teacher: TeacherConfig
    method: MethodConfig = MethodConfig()
    quant: QuantConfig = QuantConfig()
    generator: GeneratorConfig = GeneratorConfig()
    train: TrainConfig = TrainConfig()
    bank: BankConfig = BankConfig()
    emit: EmitConfig = EmitConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    output: OutputConfig = OutputConfig()


SECTIONS: dict[str, type[Settings]] = {
    "teacher": TeacherConfig,
    "method": MethodConfig,
    "quant": QuantConfig,
    "generator": GeneratorConfig,
    "train": TrainConfig,
    "bank": BankConfig,
    "emit": EmitConfig,
    "runtime": RuntimeConfig,
    "output": OutputConfig,
}
