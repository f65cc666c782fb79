"""Image files that were made to take long, and exported files that name others."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from clusterq_common.device.distributed import Ranks
from clusterq_common.errors import ClusterqError
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.real.open import open_validation
from clusterq_finetune.data.real.opening import (
    LARGEST_WHOLE,
    MOST_BESIDE,
    MOST_COSTLY,
    MOST_NUMBERS,
    MOST_TAGS,
    open_image,
)

SPEC = InputSpec(size=8, channels=3, num_classes=2, mean=(0.5,) * 3, std=(0.5,) * 3)
SIDE = 8
# Of a grey TIFF of 8x8 pixels at byte 8: tag, kind, number of values, value or place.
TAGS = [
    (256, 3, 1, SIDE),
    (257, 3, 1, SIDE),
    (258, 3, 1, 8),
    (259, 3, 1, 1),
    (262, 3, 1, 1),
    (273, 4, 1, 8),
    (277, 3, 1, 1),
    (278, 3, 1, SIDE),
    (279, 4, 1, SIDE**2),
]
TEXT, SHORT = 2, 3


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (9, 99, 199)).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(more: list[tuple[int, int, int, int]], data: bytes = bytes(SIDE**2)) -> bytes:
    entries = sorted([*(tag for tag in TAGS if tag[0] not in {own[0] for own in more}), *more])
    directory = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return struct.pack("<2sHL", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + directory + bytes(4)


def big_tiff(tags: int) -> bytes:
    return struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + struct.pack("<Q", tags) + bytes(100)


def many_tags(count: int) -> bytes:
    return tiff([(1000 + number, 4, 1, 0) for number in range(count)])


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(*, before: bytes = b"", behind: bytes = b"") -> bytes:
    plain = encoded("PNG")
    start, end = plain.index(b"IDAT") - 4, plain.index(b"IEND") - 4
    return plain[:start] + before + plain[start:end] + behind + plain[end:]


def segment(kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def jpeg(before: bytes) -> bytes:
    plain = encoded("JPEG")
    return plain[:2] + before + plain[2:]


def scanned(times: int) -> bytes:
    plain = encoded("JPEG", progressive=True)
    scan = plain[plain.rindex(b"\xff\xda") : -2]
    return plain[:-2] + scan * times + plain[-2:]


def gif(before: bytes) -> bytes:
    plain = encoded("GIF")
    start = plain.index(b"\x2c")
    return plain[:start] + before + plain[start:]


PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100)))
MADE: dict[str, tuple[Callable[[], bytes], str]] = {
    "TIFF, tags": (lambda: many_tags(60_000), f"tags, expected at most {MOST_TAGS}"),
    "TIFF, tags of EXIF": (lambda: nested(60_000), "small parts"),
    "BigTIFF, tags": (lambda: big_tiff(1 << 60), f"tags, expected at most {MOST_TAGS}"),
    "BigTIFF, the other order": (lambda: b"MM\x00+" + bytes(100), "BigTIFF"),
    "TIFF, strips": (lambda: tiff([(273, SHORT, 1 << 20, 8)], bytes(2 << 20)), f"numbers, expected at most {MOST_NUMBERS}"),
    "TIFF, description": (lambda: tiff([(270, TEXT, MOST_BESIDE, 8)], bytes(MOST_BESIDE)), "beside its pixels"),
    "PNG, chunks": (lambda: png(before=chunk(b"abCd") * 100_000), "small parts"),
    "PNG, chunks behind the pixels": (lambda: png(behind=chunk(b"abCd") * 100_000), "small parts"),
    "PNG, texts": (lambda: png(before=chunk(b"tEXt", b"a\0b") * 100_000), "small parts"),
    "PNG, one long text": (lambda: png(before=chunk(b"tEXt", b"a\0" + bytes(MOST_BESIDE))), "beside its pixels"),
    "PNG, EXIF": (lambda: png(behind=chunk(b"eXIf", b"II*\0" + bytes(MOST_BESIDE + 2000))), "beside its pixels"),
    "PNG, profiles": (lambda: png(before=PROFILE * (MOST_COSTLY + 1)), "profiles"),
    "JPEG, segments": (lambda: jpeg(segment(0xE5) * 100_000), "small parts"),
    "JPEG, long segments": (lambda: jpeg(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 260), "beside its pixels"),
    "JPEG, filling": (lambda: jpeg(b"\xff" * 100_000), "small parts"),
    "JPEG, scans": (lambda: scanned(MOST_COSTLY), "scans"),
    "GIF, comments": (lambda: gif(b"\x21\xfe\x01a\x00" * 100_000), "small parts"),
    "GIF, junk": (lambda: gif(b"\1" * 100_000), "small parts"),
    "Netpbm, a comment": (lambda: b"P6\n#" + b"x" * 3_000_000 + b"\n8 8 255\n" + bytes(192), "small parts"),
    "Netpbm, # alone": (lambda: b"P5\n" + b"#" * 3_000_000, "small parts"),
    "Netpbm, comments in a header": (lambda: b"P5\n" + b"#\n" * 1_500_000 + b"8 8 255\n", "small parts"),
    "Netpbm, comments among numbers": (lambda: b"P2 8 8 255\n" + b"#\n" * 100 + b"0 " * 64, "comments"),
}


def nested(count: int) -> bytes:
    """A TIFF whose EXIF is a directory of its own."""
    place = 8 + SIDE**2 + 2 + 12 * (len(TAGS) + 1) + 4
    exif = b"".join(struct.pack("<HHLL", 1000 + number, 4, 1, 0) for number in range(count))
    return tiff([(0x8769, 4, 1, place)]) + struct.pack("<H", count) + exif + bytes(4)


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("from_file", [True, False])
def test_files_with_far_more_than_their_pixels_are_refused(kind: str, from_file: bool, tmp_path: Path) -> None:
    made, sentence = MADE[kind]
    data = made()
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=sentence), open_image(tmp_path / "a" if from_file else data) as image:
        np.asarray(image)


def usual() -> Iterator[tuple[str, bytes]]:
    """Files that people have, up to the limits."""
    exif = Image.Exif()
    exif[0x010E] = "a" * 60_000
    yield "JPEG with EXIF and a profile", encoded("JPEG", exif=exif, icc_profile=bytes(4 << 20), progressive=True)
    yield "JPEG of 240 segments", jpeg(segment(0xE5, bytes(65_000)) * 240)
    yield "PNG with texts", png(before=chunk(b"tEXt", b"a\0b") * 1000, behind=chunk(b"eXIf", exif.tobytes()[6:]))
    yield "TIFF of a microscope", tiff([(270, TEXT, 4 << 20, 8), *((1000 + n, 4, 1, 0) for n in range(500))], bytes(4 << 20))
    yield "TIFF, packed", encoded("TIFF", compression="tiff_deflate")
    yield "WebP", encoded("WEBP", exif=exif, lossless=True)
    yield "GIF", encoded("GIF", comment=b"a" * 10_000)
    yield "BMP", encoded("BMP")
    yield "PPM with a comment", b"P6\n# by hand\n8 8\n# and\n255\n#" + b"x" * 30_000 + b"\n" + bytes(3 * SIDE**2)
    rows = (b"\x01\x05\x01\x06" * 100 + bytes(2)) * 100 + b"\0\1"
    head = struct.pack("<LLLHHLLLLLL", 40, 200, 100, 1, 8, 1, len(rows), 0, 0, 256, 0)
    yield "BMP of runs", b"BM" + struct.pack("<LHHL", 0, 0, 0, 14 + 40 + 1024) + head + bytes(1024) + rows


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in usual()])
@pytest.mark.parametrize("from_file", [True, False])
def test_usual_files_are_read(data: bytes, from_file: bool, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with open_image(tmp_path / "a" if from_file else data) as image, Image.open(io.BytesIO(data)) as plain:
        assert np.array_equal(np.asarray(image), np.asarray(plain))


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    """WebP's decoder takes a file in one piece."""
    with (tmp_path / "a.webp").open("wb") as file:
        file.write(encoded("WEBP"))
        file.truncate(LARGEST_WHOLE + 1)
    with pytest.raises(ValueError, match=f"expected at most {LARGEST_WHOLE}"), open_image(tmp_path / "a.webp"):
        pass


@pytest.mark.parametrize("data", [b"P\x00", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", b"II*\0" + b"\xff" * 20, b""])
def test_files_of_other_kinds_are_not_opened(data: bytes) -> None:
    """Pillow would run Ghostscript for one of them, whatever its name."""
    with pytest.raises(OSError, match="cannot identify"), open_image(data):
        pass


def test_refused_images_are_counted_and_named(tmp_path: Path) -> None:
    good, odd = encoded("PNG"), many_tags(MOST_TAGS)
    broken = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">LLBBBBB", 1 << 20, 1 << 20, 8, 2, 0, 0, 0))
    for name, data in (("a/a.tif", odd), ("a/b.png", good), ("b/c.png", good), ("b/d.png", broken)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (batch,) = open_validation(tmp_path, SPEC).batches(4, 0, Ranks.current())
    assert (batch.unreadable, batch.names) == (["a/a.tif", "b/d.png"], ["a/b.png", "b/c.png"])


@pytest.mark.parametrize("location", ["../secret", "{folder}/secret"])
def test_an_exported_file_reads_none_outside_its_folder(location: str, tmp_path: Path) -> None:
    """A received ONNX file may say that its weights lie in another file."""
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "model").mkdir()
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location.format(folder=tmp_path)), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model" / "m.onnx"
    path.write_bytes(made.SerializeToString())
    assert onnx.load(path, load_external_data=False).graph.initializer[0].external_data
    with pytest.raises(ClusterqError, match=r"escapes|outside|validation failed"):
        OnnxModel(path)
