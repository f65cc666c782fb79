"""Settings of methods without a generator: a bank of images, each optimised on its own. Free of torch."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from clusterq_common.errors import ClusterqError
from clusterq_common.settings import Settings, merged


class BankConfig(Settings):
    """Settings for optimising a bank of images. The defaults are ZeroQ's; the other methods set other values."""

    bank_steps: int = Field(500, ge=1, description="steps that each batch of images is optimised for")
    bank_lr: float = Field(0.1, gt=0, description="images' learning rate (Adam), on half a cosine down to zero in each batch")
    bank_bns_weight: float = Field(1.0, ge=0, description="weight of the BatchNorm-statistics distance")
    bank_input_weight: float = Field(
        1.0, ge=0, description="weight of the images' own distance to mean 0 and deviation 1, as of one more BatchNorm layer"
    )
    bank_slack: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="part of a layer's channels whose distance on noise images costs nothing: the margin is that quantile (DSG); "
        "0: no margin",
    )
    bank_emphasis: float = Field(
        0.0, ge=0, description="extra weight of one BatchNorm layer, in turn a different one, for each image (DSG)"
    )
    bank_class_weight: float = Field(
        0.0, ge=0, description="weight of the class; 0: no class is asked for, an image's label is the teacher's own answer"
    )
    bank_class_loss: Literal["ce", "soft"] = Field(
        "ce",
        description="ce: cross-entropy; soft: squared distance of the class's probability to a target drawn at each step (IntraQ)",
    )
    bank_soft_least: float = Field(0.95, ge=0, le=1, description="soft: targets are drawn between this probability and 1")
    bank_hard_gamma: float = Field(
        0.0,
        ge=0,
        description="weigh each image's class loss by (1 - p)^gamma, p the class's probability (HAST: 2); 0: all alike",
    )
    bank_margin_weight: float = Field(
        0.0, ge=0, description="weight of keeping features within a range of cosine distances to their class's centre (IntraQ)"
    )
    bank_margin_least: float = Field(0.05, ge=0, le=2, description="lower end of that range")
    bank_margin_most: float = Field(0.8, ge=0, le=2, description="upper end of that range")
    bank_crop: float = Field(
        0.0, ge=0, le=1, description="probability that a step sees a random crop of the images, resized (IntraQ)"
    )
    bank_crop_least: float = Field(0.5, gt=0, le=1, description="smallest share of an image's area that a crop keeps")
    bank_spare: float = Field(
        1.25, ge=1, description="images made of each class for one that is wanted, since the teacher may reject some"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "BankConfig":
        if not self.bank_class_weight and (self.bank_margin_weight or self.bank_hard_gamma):
            name = "bank_margin_weight" if self.bank_margin_weight else "bank_hard_gamma"
            raise ValueError(f"{name} needs classes, but bank_class_weight is 0")
        if not (self.bank_class_weight or self.bank_bns_weight):
            raise ValueError("bank_bns_weight and bank_class_weight are both 0, so nothing would be optimised")
        if self.bank_margin_least > self.bank_margin_most:
            raise ValueError(f"bank_margin_least ({self.bank_margin_least}) exceeds bank_margin_most ({self.bank_margin_most})")
        return self

    @property
    def labelled(self) -> bool:
        """True where each image is optimised for a class."""
        return self.bank_class_weight > 0


# Each method's changes to the defaults. The defaults are ZeroQ's: Adam at 0.1, 500 steps a batch, as in its released code.
# - Batches of 256 are IntraQ's and HAST's (released configurations). The other methods use them here, too.
# - DSG: epsilon 0.9 on 1024 noise images is the paper's; the rest is ZeroQ's. Its additional layer for each image has weight 1.
# - IntraQ: the learning rate, the crops' half and the numbers for CIFAR-10 are those of its released configurations. They have
#   soft_least 0.6 and margins 0.02 to 1.0 for CIFAR-100; for ImageNet 0.9 and 0.3 to 0.8 are in use. All weights are 1. The
#   number of steps and the probability of a crop are this project's choice, after the paper's text. Its mirrored images are left
#   out, since not every classifier accepts them.
# - HAST's images are `--method intraq --bank-class-loss ce --bank-hard-gamma 2 --bank-crop 0 --bank-margin-weight 0`. gamma is its
#   released configuration's for CIFAR-10. It was unclear which term its weight of 10 applies to, so all weights stay 1.
BANK_METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "zeroq": {"train": {"batch_size": 256}},
    "dsg": {"train": {"batch_size": 256}, "bank": {"bank_slack": 0.9, "bank_emphasis": 1.0}},
    "intraq": {
        "train": {"batch_size": 256},
        "bank": {
            "bank_steps": 1000,
            "bank_lr": 0.5,
            "bank_input_weight": 0.0,
            "bank_class_weight": 1.0,
            "bank_class_loss": "soft",
            "bank_margin_weight": 1.0,
            "bank_crop": 0.5,
        },
    },
}

# Each preset's changes on top: as for generators, but with a bank's own settings.
BANK_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper-cifar": {},
    "paper-imagenet": {"emit": {"per_class": 200}},
    "quick": {"bank": {"bank_steps": 200}, "train": {"batch_size": 100}, "emit": {"per_class": 128, "images": 2560}},
}

# Settings of generator training that a bank uses, too.
SHARED = {"method": {"method"}, "quant": {"bits"}, "generator": set[str](), "train": {"batch_size", "classes_per_batch"}}
# This setting changes the speed and not the images, so a bank's shards do not record it.
PACE = {"cuda_graphs"}


def is_bank(method: str) -> bool:
    """Return whether the method optimises images and trains no generator."""
    return method in BANK_METHODS


def method_of(values: dict[str, Any]) -> str:
    """Return the method that the settings (section -> field -> value) name, or the default where they name none."""
    return str(_section(values, "method").get("method", "clusterq"))


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section, or an empty one where it is missing or not a mapping. Validation reports a wrong type later."""
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def with_method(values: dict[str, Any], flags: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a saved configuration adapted to the method that the flags name.

    Another bank method starts from its own bank settings instead of the file's.
    """
    method = flags.get("method", {}).get("method")
    if method is None or method == method_of(values) or not is_bank(method):
        return values
    return merged({**values, "bank": {}}, BANK_METHODS[method])


def refuse_idle_emission(method: str, steps: int, given: Iterable[str]) -> None:
    """Raise an error for emission settings that would have no effect.

    Args:
        method: method of the run.
        steps: number of refinement steps.
        given: names of the emission's settings that the user gave.

    Raises:
        ClusterqError: names the first such setting.
    """
    for name in given:
        flag = f"--{name.replace('_', '-')}"
        if name == "labels" and is_bank(method):
            raise ClusterqError(
                f"{flag} has no meaning with --method {method}; leave it out: --bank-class-weight says whether classes are asked for."
            )
        if name.startswith("refine_") and is_bank(method):
            raise ClusterqError(
                f"{flag} has no meaning with --method {method}, whose images are optimised anyway; leave it out (its own settings start "
                "with --bank)."
            )
        if name.startswith("refine_") and name != "refine_steps" and not steps:
            raise ClusterqError(f"{flag} has no meaning without refinement; leave it out, or give --refine-steps, too.")


def refuse_meaningless(values: dict[str, Any], flags: dict[str, dict[str, Any]]) -> None:
    """Raise an error for flags that the method ignores.

    Args:
        values: section -> field -> value: flags merged over all lower-priority settings, not yet validated.
        flags: flags given on the command line.

    Raises:
        ClusterqError: names the first such flag.
    """
    method = method_of(values)
    labelled = bool(_section(values, "bank").get("bank_class_weight"))
    refuse_idle_emission(method, _section(values, "emit").get("refine_steps", 0), flags.get("emit", {}))
    for section, given in flags.items():
        for name in given:
            flag = f"--{name.replace('_', '-')}"
            if is_bank(method) and section in SHARED and name not in SHARED[section] | PACE:
                raise ClusterqError(
                    f"{flag} has no meaning with --method {method}, which optimises images and trains no generator; leave it out (its "
                    "own settings start with --bank)."
                )
            if is_bank(method) and name == "classes_per_batch" and not labelled:
                raise ClusterqError(
                    f"{flag} has no meaning with --method {method}, which asks for no classes; leave it out, or give a "
                    "--bank-class-weight."
                )
            if not is_bank(method) and section == "bank":
                raise ClusterqError(
                    f"{flag} has no meaning with --method {method}, which trains a generator; leave it out, or choose one of "
                    f"{', '.join(BANK_METHODS)}."
                )
