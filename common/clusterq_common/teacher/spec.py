"""Settings of a teacher: its name and its input. Free of torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from clusterq_common.settings import Settings
from clusterq_common.teacher.size import SMALL_SIDE, Size, sides

if TYPE_CHECKING:
    from torch import Tensor


def _numbers(value: Any) -> Any:
    """Parse `"0.5,0.5,0.5"` to a tuple of floats; return anything else unchanged."""
    return tuple(float(part) for part in value.split(",")) if isinstance(value, str) else value


# For pixels in [0, 1] larger ones make no sense; the customary ones for 0..255 lie far above.
MOST_MEAN, MOST_STD = 2.0, 2.0
# Far above what classifiers take. Hostile files ask for more, to fill the memory.
MOST_CHANNELS = 64
MOST_CLASSES = 1_000_000
# As a value of `weights`: keep the fresh weights. For trials of speed and memory.
RANDOM = "random"
Interpolation = Literal["bilinear", "bicubic"]
PerChannel = Annotated[tuple[float, ...], BeforeValidator(_numbers)]


def for_whole_pixels(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Return whether a normalisation is one for pixels in 0..255 rather than in [0, 1]."""
    return max(map(abs, mean)) > MOST_MEAN or max(std) > MOST_STD


class InputSpec(Settings):
    """The images a classifier takes: `channels` x `height` x `width`, pixels in [0, 1] normalised per channel.

    Attributes:
        size: the side of a square in pixels, or (height, width) of any other image; "64x128" is read, too.
        channels: 1 or 3 where images are stored.
        num_classes: how many logits the classifier gives.
        mean: of each channel; a network sees `(pixels / 255 - mean) / std`.
        std: of each channel, above 0.
    """

    size: Size = Field(description="side of a square in pixels; of any other image height x width, as 64x128")
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

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return sides(self.size)[0]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return sides(self.size)[1]

    @property
    def square(self) -> bool:
        """True where height and width are equal."""
        return self.height == self.width

    @property
    def longer_side(self) -> int:
        """The larger one of height and width: what limits on sizes are about."""
        return max(self.height, self.width)

    @property
    def small(self) -> bool:
        """True for images like CIFAR's rather than ImageNet's: the longer side is at most 64 pixels."""
        return self.longer_side <= SMALL_SIDE

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width): an image as a network takes it."""
        return self.channels, self.height, self.width

    @property
    def raw_bytes(self) -> int:
        """Bytes of an image's eight-bit pixels."""
        return self.channels * self.height * self.width

    @property
    def shown_size(self) -> str:
        """`64x128`, height first, of squares too."""
        return f"{self.height}x{self.width}"

    def example(self, count: int = 1) -> "Tensor":
        """Images of zeros, (count, channels, height, width) float32: a shape to try a network with.

        Examples:
            >>> import clusterq as cq
            >>> cq.InputSpec(size=8, channels=1, num_classes=10, mean=(0.5,), std=(0.5,)).example().shape
            torch.Size([1, 1, 8, 8])
            >>> cq.InputSpec(size=(8, 16), channels=1, num_classes=10, mean=(0.5,), std=(0.5,)).example().shape
            torch.Size([1, 1, 8, 16])
        """
        import torch  # here, since settings are read by what must start without it

        return torch.zeros(count, *self.shape)


class Geometry(Settings):
    """Preprocessing of a photograph into the image that a classifier takes.

    Attributes:
        crop_pct: share of the centre crop in the resized photograph, along the side that fits it; None: the whole picture,
            squeezed into the image's size.
        interpolation: of the resizing, antialiased.
    """

    crop_pct: float | None = Field(gt=0, le=1, validation_alias=AliasChoices("crop_pct", "crop_share"))
    interpolation: Interpolation


class TeacherConfig(Settings):
    """The classifier to quantize, and its weights. `None` means: as known for the architecture."""

    arch: str = Field(description="pytorchcv model name (resnet18, ...) or your own factory, path/to/file.py:function")
    weights: str | None = Field(None, description="safetensors or PyTorch state dict; pytorchcv's own download if left out")
    weights_key: str | None = Field(
        None, description="key of the weights in the file, e.g. state_dict_ema; looked for if left out"
    )
    input_size: Size | None = Field(
        None, description="size of the input image in pixels: 224 for a square, 64x128 for height x width"
    )
    in_channels: int | None = Field(None, ge=1, description="channels of the input image")
    num_classes: int | None = Field(None, ge=2, description="number of classes")
    mean: PerChannel | None = Field(None, description="normalisation mean per channel, pixels in [0, 1], e.g. 0.5,0.5,0.5")
    std: PerChannel | None = Field(None, description="normalisation standard deviation per channel, e.g. 0.5,0.5,0.5")


def named_teacher(arch: str | None, weights: str | None) -> dict[str, str]:
    """Return the fields of a teacher's settings that are given."""
    return {name: value for name, value in (("arch", arch), ("weights", weights)) if value is not None}


def is_factory(arch: str) -> bool:
    """Return whether an architecture is a file and a function rather than a pytorchcv name."""
    return ":" in arch or arch.endswith(".py") or "/" in arch


def absolute_factory(arch: str) -> str:
    """Return a factory with an absolute path."""
    path, _, function = arch.rpartition(":")
    return f"{Path(path).resolve()}:{function}"


def shown_arch(arch: str) -> str:
    """Return `file.py:function` without its folders; a name unchanged."""
    path, _, function = arch.rpartition(":")
    return f"{Path(path).name}:{function}" if is_factory(arch) else arch
