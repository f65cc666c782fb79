"""PNG images from strangers: decoded within bounds, or refused."""

import resource
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterq_common.errors import ClusterqError
from tests.common.shard_samples import GREY
from tests.png_tensors import decode_png, encode_png


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        png_of(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(1 << 20)))),
        # The size fits, the data goes on for a gigabyte.
        png_of(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))), chunk(b"IDAT", zlib.compress(bytes(72)))),
        png_of(8, 8, chunk(b"IDAT", b"")),
    ],
)
def test_decompression_bombs(data: bytes) -> None:
    tracemalloc.start()
    try:
        with suppress(ClusterqError):
            assert decode_png(data, GREY).shape == (1, 8, 8)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_an_idat_longer_than_the_image_is_not_unpacked_whole(tmp_path: Path) -> None:
    bomb = png_of(8, 8, chunk(b"IDAT", zlib.compress(bytes(1 << 28))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(ClusterqError):
        decode_png(bomb, GREY)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "KiB"


PNG = encode_png(torch.arange(64, dtype=torch.uint8).view(1, 8, 8))


@given(st.integers(0, len(PNG) - 1), st.binary(min_size=1, max_size=4), st.booleans())
def test_a_spoilt_png_is_refused_or_decoded_but_never_crashes(place: int, junk: bytes, cut: bool) -> None:
    spoilt = PNG[:place] + junk + (b"" if cut else PNG[place + len(junk) :])
    with suppress(ClusterqError):
        assert decode_png(spoilt, GREY).shape == (1, 8, 8)
