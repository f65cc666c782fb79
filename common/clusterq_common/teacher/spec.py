"""Settings of a teacher: its name and its input. Free of torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from clusterq_common.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


def _numbers(value: Any) -> Any:
    """`"0.5,0.5,0.5"` as a tuple of floats; anything else as it is."""
    return tuple(float(part) for part in value.split(",")) if isinstance(value, str) else value


# For pixels in [0, 1] larger ones make no sense; the customary ones for 0..255 lie far above.
MOST_MEAN, MOST_STD = 2.0, 2.0
# Far above what classifiers take: images beyond it were asked for to fill the memory.
LARGEST_SIDE = 4096
MOST_CHANNELS = 64
MOST_CLASSES = 1_000_000
Interpolation = Literal["bilinear", "bicubic"]
PerChannel = Annotated[tuple[float, ...], BeforeValidator(_numbers)]


def for_whole_pixels(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Return whether a normalisation is one for pixels in 0..255 rather than in [0, 1]."""
    return max(map(abs, mean)) > MOST_MEAN or max(std) > MOST_STD


class InputSpec(Settings):
    """The images a classifier takes: square, `channels` x `size` x `size`, pixels in [0, 1] normalised per channel.

    Attributes:
        size: side in pixels.
        channels: 1 or 3 where images are stored.
        num_classes: how many logits the classifier gives.
        mean: of each channel; a network sees `(pixels / 255 - mean) / std`.
        std: of each channel, above 0.
    """

    size: int = Field(ge=1, le=LARGEST_SIDE)
    channels: int = Field(ge=1, le=MOST_CHANNELS)
    num_classes: int = Field(ge=2, le=MOST_CLASSES)
    mean: PerChannel
    std: PerChannel

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> "InputSpec":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need one number for each of the {self.channels} channels")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if for_whole_pixels(self.mean, self.std):
            raise ValueError(
                f"mean {self.mean} and std {self.std} are for pixels in 0..255, but clusterq's pixels lie in [0, 1]: divide both by 255"
            )
        return self

    def example(self, count: int = 1) -> "Tensor":
        """Images of zeros, (count, channels, size, size) float32: a shape to try a network with.

        Examples:
            >>> import clusterq as cq
            >>> cq.InputSpec(size=8, channels=1, num_classes=10, mean=(0.5,), std=(0.5,)).example().shape
            torch.Size([1, 1, 8, 8])
        """
        import torch  # here, since settings are read by what must start without it

        return torch.zeros(count, self.channels, self.size, self.size)


class Geometry(Settings):
    """Preprocessing of a photograph into the square image that a classifier takes.

    Attributes:
        crop_share: side of the centre crop over the shorter side of the resized photograph; None: the whole picture, squeezed
            into the square.
        interpolation: of the resizing, antialiased.
    """

    crop_share: float | None = Field(gt=0, le=1)
    interpolation: Interpolation


class TeacherConfig(Settings):
    """The classifier to quantize, and its weights. `None` means: as known for the architecture."""

    arch: str = Field(description="pytorchcv model name (resnet18, ...) or your own factory, path/to/file.py:function")
    weights: str | None = Field(None, description="safetensors or PyTorch state dict; pytorchcv's own download if left out")
    weights_key: str | None = Field(
        None, description="key of the weights in the file, e.g. state_dict_ema; looked for if left out"
    )
    input_size: int | None = Field(None, ge=1, description="side of the square input image in pixels")
    in_channels: int | None = Field(None, ge=1, description="channels of the input image")
    num_classes: int | None = Field(None, ge=2, description="number of classes")
    mean: PerChannel | None = Field(None, description="normalisation mean per channel, pixels in [0, 1], e.g. 0.5,0.5,0.5")
    std: PerChannel | None = Field(None, description="normalisation standard deviation per channel, e.g. 0.5,0.5,0.5")


def is_factory(arch: str) -> bool:
    """Return whether an architecture is a file and a function rather than a pytorchcv name."""
    return ":" in arch or arch.endswith(".py") or "/" in arch


def absolute_factory(arch: str) -> str:
    """The same factory, whatever the current directory."""
    path, _, function = arch.rpartition(":")
    return f"{Path(path).resolve()}:{function}"


def shown_arch(arch: str) -> str:
    """A factory as `file.py:function`: the rest of its path is nobody's business. A name as it is."""
    path, _, function = arch.rpartition(":")
    return f"{Path(path).name}:{function}" if is_factory(arch) else arch
