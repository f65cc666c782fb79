"""Settings of a method: its losses and their weights. The paper's values are the defaults."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from clusterq_common.errors import did_you_mean
from clusterq_common.settings import Settings
from clusterq_common.teacher.spec import absolute_factory, is_factory
from clusterq_gen.bank.config import BANK_METHODS

GENERATOR_METHODS = ("clusterq", "gdfq", "adadfq", "qimera")
Units = Literal["raw", "std"]


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
