"""Images of more than eight bits, and of modes out of the ordinary: scaled or refused by name, never clipped in silence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.pixels import eight_bits
from clusterq_finetune.data.preprocess import preprocess
from clusterq_finetune.data.real import Remark, open_validation
from clusterq_finetune.evaluation.evaluate import EvaluationResult, evaluate_models
from clusterq_finetune.evaluation.summary import add_evaluation, summary_lines

CPU = torch.device("cpu")
GREY = InputSpec(size=8, channels=1, num_classes=2, mean=(0.5,), std=(0.5,))
COLOUR = InputSpec(size=8, channels=3, num_classes=2, mean=(0.5,) * 3, std=(0.5,) * 3)
RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


class Brightness(nn.Module):
    """Class 1 for bright images."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean((1, 2, 3))
        return torch.stack([-level, level], dim=1)


def folders(root: Path, name: str = "1.png", image: Image.Image | None = None, **options: object) -> Path:
    """Two class folders; the second also holds `image`."""
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(RAMP).save(root / folder / "0.png")
    if image is not None:
        image.save(root / "b" / name, **options)
    return root


def evaluated(root: Path, spec: InputSpec = GREY, workers: int = 0, **settings: object) -> EvaluationResult:
    return evaluate_models({"m": Brightness()}, open_validation(root, spec, **settings), device=CPU, workers=workers)["m"]


def read(root: Path, spec: InputSpec = GREY, **settings: object) -> np.ndarray:
    pixels = open_validation(root, spec, **settings)[2][0]
    assert pixels is not None
    return pixels.numpy()


def tiff(values: np.ndarray, bits: int, photometric: int = 1) -> bytes:
    """An uncompressed grey TIFF, little-endian, written by hand: Pillow writes neither 12 bits nor white as zero."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())
    else:
        data = values.astype("<u2").tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_by_their_depth(tmp_path: Path, suffix: str) -> None:
    deep = RAMP.astype(np.uint16) * 257
    if suffix == "pgm":
        folders(tmp_path)
        (tmp_path / "b" / "1.pgm").write_bytes(b"P5\n8 8\n65535\n" + deep.astype(">u2").tobytes())
    else:
        folders(tmp_path, f"1.{suffix}", Image.fromarray(deep))
    np.testing.assert_array_equal(read(tmp_path)[0], RAMP)
    assert np.array_equal(read(tmp_path, COLOUR), np.stack([RAMP] * 3))


def test_every_value_of_sixteen_bits_goes_to_the_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    converted = np.asarray(eight_bits(Image.fromarray(values), None, "x").image)
    assert converted.flatten().tolist() == [(2 * 255 * v + 65535) // (2 * 65535) for v in range(65536)]


def test_twelve_bits_and_white_as_zero(tmp_path: Path) -> None:
    twelve = np.rint(RAMP / 255 * 4095).astype(np.uint16)
    folders(tmp_path)
    (tmp_path / "b" / "1.tif").write_bytes(tiff(twelve, 12))
    np.testing.assert_array_equal(read(tmp_path)[0], RAMP)
    (tmp_path / "b" / "1.tif").write_bytes(tiff(RAMP.astype(np.uint16) * 257, 16, photometric=0))
    np.testing.assert_array_equal(read(tmp_path)[0], 255 - RAMP)


def test_twelve_bits_in_sixteen_are_remarked(tmp_path: Path) -> None:
    """As scanners write them: nearly black unless a range is given."""
    folders(tmp_path, "1.png", Image.fromarray(RAMP.astype(np.uint16) * 16))
    (remark,) = evaluated(tmp_path).remarks
    assert "16 bits with no value above 4095" in remark.line()
    assert remark.names == ["b/1.png"]
    assert evaluated(tmp_path, pixel_range=(0, 255 * 16)).remarks == []
    np.testing.assert_array_equal(read(tmp_path, pixel_range=(0, 255 * 16))[0], RAMP)


def test_unsigned_32_bits_keep_their_upper_half(tmp_path: Path) -> None:
    folders(tmp_path)
    values = RAMP.astype("<u4") << 24
    tags = [(256, 8), (257, 8), (258, 32), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 256), (339, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + 256)
    (tmp_path / "b" / "1.tif").write_bytes(head + values.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4))
    np.testing.assert_array_equal(read(tmp_path, pixel_range=(0, 255 * 2.0**24))[0], RAMP)


def test_giant_images_are_not_decoded(tmp_path: Path) -> None:
    """A file of a few kilobytes may hold any number of pixels. They are counted as unreadable."""
    folders(tmp_path)
    for number, (width, height) in enumerate(((8200, 8200), (1, 70_000))):
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes((width + 1) * height))), (b"IEND", b""))
        data = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
        (tmp_path / "b" / f"{number + 1}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert evaluated(tmp_path).unreadable == ["b/1.png", "b/2.png"]


def test_the_same_picture_at_sixteen_bits_has_the_same_accuracy(tmp_path: Path) -> None:
    """As scanners and X-ray archives export it; clipped at 255 it is all white."""
    for folder, level in (("a", 40), ("b", 200)):
        (tmp_path / folder).mkdir()
        for number in range(3):
            Image.fromarray(np.full((8, 8), (level + number) * 257, np.uint16)).save(tmp_path / folder / f"{number}.png")
    result = evaluated(tmp_path)
    assert result.top1 == 100
    assert result.modes == {"I;16": 6}


@pytest.mark.parametrize(
    ("values", "mode"), [(RAMP.astype(np.float32) / 255, "F"), (RAMP.astype(np.int32), "I")], ids=["float", "32 bits"]
)
def test_floats_and_32_bits_need_a_range(tmp_path: Path, values: np.ndarray, mode: str) -> None:
    folders(tmp_path, "1.tif", Image.fromarray(values))
    sentence = rf"^pixel_range is missing: b/1.tif has pixels of mode {mode} .* from 0 to .*, expected 8 or 16 bits; pass pixel_range=LOW,HIGH"
    with pytest.raises(ClusterqError, match=sentence):
        open_validation(tmp_path, GREY)
    high = float(values.max()) * 255 / 252
    np.testing.assert_array_equal(read(tmp_path, pixel_range=(0, high))[0], RAMP)
    result = evaluated(tmp_path, pixel_range=(0, high))
    assert result.modes == {"L": 2, mode: 1}
    assert result.remarks == []


def test_signed_bytes_need_a_range(tmp_path: Path) -> None:
    """Pillow gives -1 as 255: black and white would change places at zero."""
    folders(tmp_path)
    levels = RAMP.astype(int) - 128
    data = bytearray(tiff(RAMP, 8))
    place = 8 + 2 * RAMP.size
    data[8:place] = levels.astype(np.int8).tobytes() + bytes(RAMP.size)
    data[place : place + 2] = struct.pack("<H", 10)
    data[-4:] = struct.pack("<HHIII", 339, 4, 1, 2, 0)
    (tmp_path / "b" / "1.tif").write_bytes(data)
    with pytest.raises(ClusterqError, match=r"mode L \(signed 8 bits\) from -128 to .*; pass pixel_range"):
        open_validation(tmp_path, GREY)
    np.testing.assert_array_equal(read(tmp_path, pixel_range=(-128, 127))[0], RAMP)


def test_one_float_among_many_is_refused_while_reading(tmp_path: Path) -> None:
    """Opening looks at a few images alone; a worker's refusal arrives as the sentence that it is."""
    folders(tmp_path)
    for number in range(40):
        Image.fromarray(RAMP).save(tmp_path / "a" / f"{number:02}.png")
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a" / "01.tif")
    for workers in (0, 1):
        with pytest.raises(ClusterqError) as refused:
            evaluated(tmp_path, workers=workers)
        assert str(refused.value).startswith("pixel_range is missing: a/01.tif")
    with pytest.raises(ClusterqError, match=r"a/01\.tif"):
        images = open_validation(tmp_path, GREY)
        _ = [images[n] for n in range(len(images))]


def test_what_lies_outside_the_range_is_counted_and_named(tmp_path: Path) -> None:
    folders(tmp_path, "1.tif", Image.fromarray(RAMP.astype(np.float32)))
    result = evaluated(tmp_path, pixel_range=(0, 100))
    assert result.remarks == [Remark(what="values outside pixel_range, clipped", count=1, names=["b/1.tif"])]


def test_pixels_that_are_no_numbers_are_unreadable(tmp_path: Path) -> None:
    folders(tmp_path, "1.tif", Image.fromarray(np.full((8, 8), np.nan, np.float32)))
    assert evaluated(tmp_path, pixel_range=(0, 1)).unreadable == ["b/1.tif"]


@pytest.mark.parametrize("text", ["1,0", "1", "0,1,2", "a,b", "0,inf"])
def test_a_range_is_two_rising_numbers(text: str) -> None:
    with pytest.raises(ClusterqError, match=r"^pixel_range"):
        EvaluationConfig.validated({"pixel_range": text})


def test_a_range_is_no_part_of_the_geometry() -> None:
    config = EvaluationConfig.validated({"pixel_range": "0,4095", "crop_pct": 0.9})
    assert config.black_and_white == (0, 4095)
    assert config.override_with(known_geometry(224)).crop_pct == 0.9
    assert EvaluationConfig.validated(config.model_dump(mode="json")) == config


def modes() -> dict[str, Image.Image]:
    rgb = Image.merge("RGB", [Image.fromarray(plane) for plane in (RAMP, RAMP.T.copy(), 255 - RAMP)])
    see_through = rgb.copy()
    see_through.putalpha(Image.fromarray(RAMP))
    palette = rgb.quantize(16)
    palette.info["transparency"] = 3
    return {
        "rgba.png": see_through,
        "palette.png": palette,
        "la.png": Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(RAMP)]),
        "bits.png": Image.fromarray(RAMP).convert("1"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "ycc.jpg": rgb,
    }


@pytest.mark.parametrize("name", list(modes()))
def test_other_modes_are_read_as_torchvision_reads_them(tmp_path: Path, name: str) -> None:
    folders(tmp_path, name, modes()[name])
    with Image.open(tmp_path / "b" / name) as image:
        expected = np.array(image.convert("RGB")).transpose(2, 0, 1)
        mode = image.mode
    np.testing.assert_array_equal(read(tmp_path, COLOUR), expected)
    assert evaluated(tmp_path, COLOUR).modes == {"L": 2, mode: 1}


def test_a_rotation_in_exif_is_not_applied_and_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    folders(tmp_path, "1.png", Image.fromarray(RAMP), exif=exif)
    np.testing.assert_array_equal(read(tmp_path)[0], RAMP)
    (remark,) = evaluated(tmp_path).remarks
    assert remark.line() == "a rotation in EXIF, not applied (as in torchvision): 1 (b/1.png)"


@pytest.mark.filterwarnings("error")
def test_broken_exif_says_nothing_of_the_pixels(tmp_path: Path) -> None:
    folders(tmp_path, "1.png", Image.fromarray(RAMP), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    result = evaluated(tmp_path)
    assert (result.unreadable, result.images) == ([], 3)


def test_of_several_frames_the_first_is_taken_and_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    folders(tmp_path, "1.tif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read(tmp_path)[0], RAMP)
    (remark,) = evaluated(tmp_path).remarks
    assert remark.line() == "several frames, the first is taken: 1 (b/1.tif)"


def test_the_result_has_the_modes_and_prints_unusual_ones(tmp_path: Path) -> None:
    images = open_validation(folders(tmp_path), GREY)
    result: dict[str, object] = {"m": {}}
    add_evaluation(result, evaluate_models({"m": Brightness()}, images, device=CPU), images, GREY)
    assert result["evaluated_on"] == {"layout": "class folders", "images": 2, "modes": {"L": 2}, "remarks": []}
    assert "pixel modes" not in "".join(summary_lines(result))
    folders(tmp_path, "1.png", Image.fromarray(RAMP.astype(np.uint16) * 257))
    images = open_validation(tmp_path, GREY)
    add_evaluation(result, evaluate_models({"m": Brightness()}, images, device=CPU), images, GREY)
    assert "pixel modes: L 2, I;16 1" in summary_lines(result)


def test_a_deep_image_alone_is_scaled_too() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(buffer, "PNG")
    prepared = preprocess(Image.open(buffer), GREY, known_geometry(8))
    np.testing.assert_array_equal(prepared[0].numpy(), RAMP)
