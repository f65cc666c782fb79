"""Settings of a generator and of its training."""

from typing import Any, Literal

from pydantic import Field, model_validator

from clusterq_common.settings import Settings

# Values of the setting `generator` in configurations saved before `conditioning` replaced it.
FORMER_GENERATORS = {"auto": "paper", "embedding": "product", "conditional-bn": "batchnorm"}


class GeneratorConfig(Settings):
    """Architecture of the generator."""

    conditioning: Literal["paper", "product", "concat", "scaled", "sum", "batchnorm"] = Field(
        "paper",
        description="how the class enters the generator; concat: noise and class embedding side by side; scaled: 0.5 noise and 2 embedding "
        "side by side; sum: 0.5 noise + 2 embedding; "
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
