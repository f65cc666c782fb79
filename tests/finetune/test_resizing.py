"""Real images are resized and cropped as torchvision does, squares and others."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.spec import Geometry
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.preprocess import covered, describe_preprocessing, preprocess, resized
from tests.finetune.inputs import IMAGENET, SMALL


def as_torchvision(image: Image.Image, shorter: int, size: int, resampling: Image.Resampling) -> Image.Image:
    """Resize(shorter) and CenterCrop(size) of torchvision 0.2 and later, for PIL images, step by step."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = shorter, int(shorter * long / short)
    image = image.resize((new_short, new_long) if width <= height else (new_long, new_short), resampling)
    # Written as torchvision writes it, whose pixels these must be.
    top, left = int(round((image.height - size) / 2.0)), int(round((image.width - size) / 2.0))  # noqa: RUF046
    return image.crop((left, top, left + size, top + size))


@pytest.mark.parametrize(
    "size", [(299, 299), (500, 333), (333, 500), (224, 600), (256, 411), (64, 64), (7, 5), (1, 1), (259, 258)]
)
@pytest.mark.parametrize(
    ("side", "share", "shorter"), [(224, 0.875, 256), (240, 0.882, 273), (300, 0.904, 332), (224, 1.0, 224), (32, 0.875, 37)]
)
def test_photographs_are_resized_and_cropped_as_torchvision_does(
    size: tuple[int, int], side: int, share: float, shorter: int
) -> None:
    image = Image.effect_noise(size, 60).convert("RGB")
    spec = IMAGENET.model_copy(update={"size": side})
    for name, resampling in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        geometry = Geometry.validated({"crop_pct": share, "interpolation": name})
        expected = np.array(as_torchvision(image, shorter, side, resampling))
        np.testing.assert_array_equal(preprocess(image, spec, geometry).permute(1, 2, 0).numpy(), expected)
        assert f"shorter side to {shorter} ({name}, antialiased), centre crop {side}" in describe_preprocessing(spec, geometry)


@given(size=st.integers(65, 700), share=st.floats(0.5, 1), width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_the_crop_lies_inside(size: int, share: float, width: int, height: int) -> None:
    shorter, other = covered(size, share)
    assert shorter == other
    assert size <= shorter <= size / share + 1
    wide, high = resized((width, height), (shorter, shorter))
    assert min(wide, high) == shorter
    assert max(wide, high) == int(shorter * max(width, height) / min(width, height))


@given(
    down=st.integers(1, 700),
    across=st.integers(1, 700),
    share=st.floats(0.5, 1),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
)
def test_an_image_that_is_not_square_is_just_covered(down: int, across: int, share: float, width: int, height: int) -> None:
    high, wide = covered((down, across), share)
    assert down <= high <= down / share + 1
    assert across <= wide <= across / share + 1
    new_width, new_height = resized((width, height), (high, wide))
    scale = max(Fraction(high, height), Fraction(wide, width))
    assert (new_width, new_height) == (int(width * scale), int(height * scale))
    assert new_width >= wide
    assert new_height >= high
    assert new_width == wide or new_height == high


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (50, 100), (40, 30), (97, 31), (20, 90)])
@pytest.mark.parametrize("share", [None, 1.0, 0.8])
def test_height_and_width_are_not_confused(size: tuple[int, int], share: float | None) -> None:
    # Left to right it grows brighter, top to bottom a second channel does.
    width, height = size
    across = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    image = Image.fromarray(np.stack([across, down, np.zeros_like(across)], axis=2).round().astype(np.uint8))
    spec = SMALL.model_copy(update={"size": (24, 48)})
    geometry = Geometry(crop_pct=share, interpolation="bilinear")
    prepared = preprocess(image, spec, geometry)
    assert prepared.shape == (3, 24, 48)
    high, wide = (24, 48) if share is None else covered((24, 48), share)
    new_width, new_height = (48, 24) if share is None else resized(size, (high, wide))
    # What the crop keeps of the whole range, in the middle.
    kept = [255 * 48 / new_width, 255 * 24 / new_height]
    for channel, along, share_kept in ((0, (0,), kept[0]), (1, (1,), kept[1])):
        line = prepared[channel].float().mean(along)
        assert (line.diff() >= 0).all()
        assert line[-1] - line[0] == pytest.approx(share_kept, abs=20)
        assert line.mean() == pytest.approx(127.5, abs=8)
    assert (prepared[0].float().std(0) < 1).all(), "one value in each column"
    described = describe_preprocessing(spec, geometry)
    assert ("whole image at 24x48" if share is None else f"resized to cover {high}x{wide}") in described


def test_inputs_that_are_not_square_are_covered_unless_something_else_is_asked_for() -> None:
    known = known_geometry((16, 32))
    assert known == known_geometry((224, 448), "efficientnet_b1") == Geometry(crop_pct=1.0, interpolation="bilinear")
    assert EvaluationConfig().override_with(known) == known
    for off in ("off", False):
        assert EvaluationConfig.validated({"crop_pct": off}).override_with(known).crop_pct is None
    assert EvaluationConfig.validated({"crop_pct": "off"}).override_with(known_geometry(224)).crop_pct is None
    assert EvaluationConfig.validated({"crop_pct": "0.5"}).override_with(known).crop_pct == 0.5
    for wrong in ("0", "-0.5", "1.5", "nan", "inf", "on", "", True, [0.5]):
        with pytest.raises(ClusterqError, match="crop_pct: must be above 0 and at most 1, or off"):
            EvaluationConfig.validated({"crop_pct": wrong})


def test_an_even_share_is_not_rounded_up() -> None:
    sides = ((224, 0.7), (231, 0.55), (180, 0.9), (224, 0.56))
    assert [covered(size, share)[0] for size, share in sides] == [320, 420, 200, 400]


def test_small_images_are_used_whole_in_the_teachers_channels() -> None:
    whole = known_geometry(8)
    grey = Image.effect_noise((8, 8), 60)
    colour = preprocess(grey, SMALL, whole)
    assert all(torch.equal(colour[c], torch.from_numpy(np.array(grey))) for c in range(3))
    prepared = preprocess(grey.convert("RGB"), SMALL.model_copy(update={"channels": 1}), whole)
    assert torch.equal(prepared[0], colour[0])
    assert preprocess(grey.resize((20, 10)), SMALL, whole).shape == (3, 8, 8)
    assert "whole image" in describe_preprocessing(SMALL, whole)
