"""Pixels, tensors and PNG bytes."""

import io

import pytest
import torch
from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise, pixel_bounds, to_pixels
from clusterq_common.teacher.spec import InputSpec
from tests.common.shard_samples import COLOUR, GREY
from tests.png_tensors import decode_png, encode_png


@pytest.mark.parametrize("spec", [GREY, COLOUR])
def test_pixels_survive_every_way_there_and_back(spec: InputSpec) -> None:
    pixels = torch.randint(256, (5, *spec.shape), dtype=torch.uint8)
    assert torch.equal(to_pixels(normalise(pixels, spec), spec), pixels)
    for image in pixels:
        assert torch.equal(decode_png(encode_png(image), spec), image)
    assert encode_png(pixels[0]) == encode_png(pixels[0].clone())
    plain = (pixels.double() / 255 - torch.tensor(spec.mean).view(1, -1, 1, 1)) / torch.tensor(spec.std).view(1, -1, 1, 1)
    torch.testing.assert_close(normalise(pixels, spec).double(), plain, rtol=1e-5, atol=1e-5)


def test_bounds() -> None:
    low, high = pixel_bounds(COLOUR)
    assert to_pixels(low.expand(1, 3, 2, 2), COLOUR).max() == 0
    assert to_pixels(high.expand(1, 3, 2, 2), COLOUR).min() == 255


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (png(Image.new("L", (9, 8))), "L 8x9"),
        (png(Image.new("RGB", (8, 8))), "RGB 8x8"),
        (png(Image.new("L", (8, 8)), "JPEG"), "cannot be decoded"),
        (png(Image.new("L", (4000, 4000))), "4000x4000"),
        (png(Image.new("L", (15000, 15000))), "DecompressionBomb"),
        (png(Image.effect_noise((8, 8), 50))[:60], "cannot be decoded"),
        (b"", "cannot be decoded"),
    ],
)
def test_images_that_are_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(ClusterqError, match=sentence):
        decode_png(data, GREY)
