"""Pictures for people keep the proportions of images that are not square: grids, galleries, mosaics, comparisons by pixels."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.figures.draw import mosaic
from clusterq_gen.config import GeneratorConfig
from clusterq_gen.networks.generator import build_generator
from clusterq_gen.training.samples import COLUMNS, MARGIN, save_grid, write_grid
from clusterq_report.html.gallery import size_shown
from clusterq_report.quality.collect import small_pixels


def spec_of(height: int, width: int, channels: int = 1) -> InputSpec:
    return InputSpec(size=(height, width), channels=channels, num_classes=2, mean=(0.5,) * channels, std=(0.5,) * channels)


@given(height=st.integers(1, 600), width=st.integers(1, 600), images=st.integers(1, 300), budget=st.integers(1000, 10**6))
def test_a_gallery_keeps_proportions_and_its_budget(height: int, width: int, images: int, budget: int) -> None:
    down, across = size_shown(spec_of(height, width), images, budget)
    assert (down, across) == (height, width) or down * across * images <= budget or min(down, across) == 8
    assert abs(down * width - across * height) <= max(height, width), "the same proportions, up to one pixel"
    side = min(height, max(8, math.isqrt(budget // images)))
    assert size_shown(spec_of(height, height), images, budget) == (side, side), "squares as ever"


def test_a_grid_of_samples_puts_each_image_whole_in_its_place(tmp_path: Path) -> None:
    pixels = torch.randint(256, (2 * COLUMNS, 3, 5, 9), dtype=torch.uint8)
    write_grid(tmp_path / "grid.png", pixels)
    sheet = np.array(Image.open(io.BytesIO((tmp_path / "grid.png").read_bytes())))
    assert sheet.shape == (2 * 7 + MARGIN, COLUMNS * 11 + MARGIN, 3)
    for number, image in enumerate(pixels):
        top, left = MARGIN + 7 * (number // COLUMNS), MARGIN + 11 * (number % COLUMNS)
        assert (sheet[top : top + 5, left : left + 9] == image.permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize(("size", "shown"), [((4, 512), (1, 64)), ((128, 32), (64, 16)), ((16, 32), (16, 32))])
def test_large_samples_are_made_smaller(size: tuple[int, int], shown: tuple[int, int], tmp_path: Path) -> None:
    spec = spec_of(*size)
    generator = build_generator(GeneratorConfig(conditioning="concat", width=4, latent_size=4), spec)
    save_grid(tmp_path / "grid.png", generator, spec, seed=0)
    expected = (COLUMNS * (shown[1] + MARGIN) + MARGIN, 2 * (shown[0] + MARGIN) + MARGIN)
    assert Image.open(tmp_path / "grid.png").size == expected


def test_a_mosaic_puts_each_image_whole_in_its_place() -> None:
    pixels = torch.randint(256, (5, 3, 6, 20), dtype=torch.uint8)
    sheet, width, gap = mosaic(pixels, 2)
    assert (sheet.shape, width, gap) == ((3 * 7 - 1, 2 * 21 - 1, 3), 20, 1)
    for place, image in enumerate(pixels):
        top, left = 7 * (place // 2), 21 * (place % 2)
        assert (sheet[top : top + 6, left : left + 20] == image.permute(1, 2, 0).numpy()).all()


def test_images_are_compared_at_32_pixels_on_the_longer_side() -> None:
    pixels = torch.randint(256, (2, 3, 16, 64), dtype=torch.uint8)
    means = pixels.double().view(2, 3, 8, 2, 32, 2).mean((3, 5))
    assert (small_pixels(pixels).flatten(1).double() - means.flatten(1)).abs().max() <= 0.5
    assert torch.equal(small_pixels(pixels[..., :32]).flatten(1), pixels[..., :32].flatten(1)), (
        "no larger than that: as they are"
    )
