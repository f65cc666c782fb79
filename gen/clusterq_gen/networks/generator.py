"""Conditional generators, `(z, y) -> image`, for any size of image and number of channels.

The shapes are those of GDFQ (Xu et al., 2020), which ClusterQ uses unchanged: two blocks of upsampling and convolution
from a quarter of the image's height and width, then a convolution, tanh and a BatchNorm without affine parameters. The output is a
normalised image, clamped to the range of eight-bit pixels. How the class enters is a choice. GDFQ's two ways need its
80,000 steps before the teacher sees the class asked for; the others need a few hundred (docs/results.md).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterq_common.device.setup import at_least_float32
from clusterq_common.images.normalise import pixel_bounds
from clusterq_common.teacher.spec import InputSpec
from clusterq_gen.config import GeneratorConfig
from clusterq_gen.networks.synced_norm import SyncedBatchNorm2d
from clusterq_gen.networks.upsampled_conv import UpsampledConv2d

# Weights for `sum` and `scaled`, chosen so that the class dominates the noise from the first step on.
NOISE_SHARE, CLASS_SHARE = 0.5, 2.0
SLOPE = 0.2


def build_generator(config: GeneratorConfig, spec: InputSpec) -> "Generator":
    """Build a generator with new weights for a teacher's images."""
    conditioning = config.conditioning
    if conditioning == "paper":
        # GDFQ multiplies noise and embedding for CIFAR's images only.
        conditioning = "product" if spec.small else "batchnorm"
    if conditioning == "batchnorm":
        return ConditionalBatchNormGenerator(config, spec)
    return EmbeddingGenerator(config, spec, conditioning)


class Generator(nn.Module):
    """Base class of the generators: the layers to the first feature map, and from the last one to an image.

    Call it with z (N, latent_size) float32 and y: (N,) int64, or (N, classes) shares for images between classes. It returns
    (N, C, H, W) float32, normalised as the teacher expects.

    Args:
        inputs: number of input values of the first layer.
    """

    low: Tensor
    high: Tensor

    def __init__(self, config: GeneratorConfig, spec: InputSpec, inputs: int) -> None:
        super().__init__()
        self.latent_size = config.latent_size
        self.width = config.width
        self.image_height, self.image_width = spec.height, spec.width
        # Sides that are no multiple of four are generated slightly too large and then cropped.
        self.start = (-(-spec.height // 4), -(-spec.width // 4))
        low, high = pixel_bounds(spec)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.to_map = nn.Linear(inputs, config.width * math.prod(self.start))
        self.to_image = nn.Conv2d(config.width // 2, spec.channels, 3, padding=1)
        self.standardise = SyncedBatchNorm2d(spec.channels, affine=False)

    def _first_map(self, values: Tensor) -> Tensor:
        return self.to_map(values).view(len(values), self.width, *self.start).contiguous(memory_format=torch.channels_last)

    def _image(self, features: Tensor) -> Tensor:
        image = self.standardise(at_least_float32(torch.tanh(self.to_image(features))))
        image = image[:, :, : self.image_height, : self.image_width]
        # Pixels outside these bounds could not be stored. Inside them, training and shards differ by rounding only.
        return torch.clamp(image, self.low, self.high)


class EmbeddingGenerator(Generator):
    """GDFQ's CIFAR generator, with the class in its first layer.

    Layers: map -> BN -> up -> conv BN LeakyReLU -> up -> conv BN LeakyReLU -> image.

    The first layer's input combines the noise z and the class's embedding e, both of latent_size values that start standard
    normal. GDFQ uses `product`, z * e. As z is symmetric around 0, only the magnitudes of e then carry the class.

    Args:
        conditioning: product: z * e; concat: z and e side by side; scaled: 0.5 z and 2 e side by side; sum: 0.5 z + 2 e.
    """

    def __init__(
        self, config: GeneratorConfig, spec: InputSpec, conditioning: Literal["product", "concat", "scaled", "sum"]
    ) -> None:
        super().__init__(config, spec, inputs=config.latent_size * (2 if conditioning in ("concat", "scaled") else 1))
        width, half = config.width, config.width // 2
        self.conditioning = conditioning
        self.embedding = nn.Embedding(spec.num_classes, config.latent_size)
        self.norm0 = SyncedBatchNorm2d(width)
        self.block1 = nn.Sequential(UpsampledConv2d(width, width), SyncedBatchNorm2d(width, 0.8), nn.LeakyReLU(SLOPE))
        self.block2 = nn.Sequential(UpsampledConv2d(width, half), SyncedBatchNorm2d(half, 0.8), nn.LeakyReLU(SLOPE))

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        x = self.norm0(self._first_map(self._conditioned(z, look_up(self.embedding, classes))))
        return self._image(self.block2(self.block1(x)))

    def _conditioned(self, z: Tensor, embedded: Tensor) -> Tensor:
        if self.conditioning == "concat":
            return torch.cat([z, embedded], dim=1)
        if self.conditioning == "scaled":
            return torch.cat([NOISE_SHARE * z, CLASS_SHARE * embedded], dim=1)
        if self.conditioning == "sum":
            return NOISE_SHARE * z + CLASS_SHARE * embedded
        return z * embedded


class ConditionalBatchNormGenerator(Generator):
    """GDFQ's ImageNet generator: the class enters only through the BatchNorm of each block."""

    def __init__(self, config: GeneratorConfig, spec: InputSpec) -> None:
        super().__init__(config, spec, inputs=config.latent_size)
        width, half = config.width, config.width // 2
        self.norm0 = ConditionalBatchNorm2d(spec.num_classes, width)
        self.conv1 = UpsampledConv2d(width, width)
        self.norm1 = ConditionalBatchNorm2d(spec.num_classes, width)
        self.conv2 = UpsampledConv2d(width, half)
        self.norm2 = ConditionalBatchNorm2d(spec.num_classes, half)

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        x = self.norm0(self._first_map(z), classes)
        x = F.leaky_relu(self.norm1(self.conv1(x), classes), SLOPE)
        x = F.leaky_relu(self.norm2(self.conv2(x), classes), SLOPE)
        return self._image(x)


class ConditionalBatchNorm2d(nn.Module):
    """BatchNorm with scale and shift by class (de Vries et al., 2017); x (N, C, H, W), classes as for the generator."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.norm = SyncedBatchNorm2d(channels, affine=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        scale, shift = look_up(self.scale, classes)[:, :, None, None], look_up(self.shift, classes)[:, :, None, None]
        return torch.addcmul(shift, self.norm(x), scale)


def look_up(table: nn.Embedding, classes: Tensor) -> Tensor:
    """Return rows (N, width) of a class table, by labels (N,) int64 or superposed by shares (N, classes) as in Qimera."""
    if classes.dim() == 1:
        rows: Tensor = table(classes)
        return rows
    # Not in bf16, so that it is as exact as the look-up.
    with torch.autocast(classes.device.type, enabled=False):
        return classes @ table.weight
