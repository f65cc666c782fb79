"""A grid of generated images, class by class, for a person to look at."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterq_common.files import atomic_write
from clusterq_common.images import png
from clusterq_common.images.contact_sheet import contact_sheet
from clusterq_common.images.normalise import to_array, to_pixels
from clusterq_common.teacher.spec import InputSpec
from clusterq_gen.networks.generator import Generator
from clusterq_gen.training.latent import candidate_noise

COLUMNS = 10
MOST_CLASSES = 20
MARGIN = 2
# Larger images are scaled down, for display alone: at 224x224 a grid of 200 took longer to encode than many steps of training on a GPU.
MOST_PIXELS = 64


def save_grid(path: Path, generator: Generator, spec: InputSpec, seed: int) -> None:
    """Write a PNG with one row of images for each of the first 20 classes, as emission would draw them.

    Each image has at most 64 pixels on its longer side.
    """
    classes = min(spec.num_classes, MOST_CLASSES)
    labels = torch.arange(classes).repeat_interleave(COLUMNS)
    tries = [(label, attempt) for label in range(classes) for attempt in range(COLUMNS)]
    z = torch.stack([candidate_noise(seed, *candidate, latent_size=generator.latent_size) for candidate in tries])
    training = generator.training
    generator.eval()
    with torch.no_grad():
        images = generator(z.to(generator.low.device), labels.to(generator.low.device))
    generator.train(training)
    most = -(-spec.longer_side // MOST_PIXELS)
    shrink = (min(most, spec.height), min(most, spec.width))
    write_grid(path, to_pixels(F.avg_pool2d(images.float(), shrink).cpu(), spec))


def write_grid(path: Path, pixels: Tensor) -> None:
    """Write (rows * COLUMNS, C, H, W) uint8 as one PNG on white."""
    sheet = contact_sheet([to_array(image) for image in pixels], COLUMNS, gap=MARGIN, border=MARGIN)
    atomic_write(path, png.encode(sheet))
