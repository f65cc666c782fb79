"""Shards from strangers: each trick is refused with a sentence, nothing is executed."""

import gzip
import io
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterq_common.errors import ClusterqError
from clusterq_common.files import sha256_file
from clusterq_common.shards.index import index_tar
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.split_reader import SplitReader
from tests.common.shard_samples import edit_manifest, write_set
from tests.png_tensors import encode_png


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(ClusterqError, match=sentence):
        ShardSet.open(folder).split("train")


def test_sets_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterqError, match="no folder"):
        ShardSet.open(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no manifest.json")
    write_set(tmp_path)
    first = tmp_path / "synth-train-000000.tar"
    whole = first.read_bytes()
    first.write_bytes(whole[:-700])
    refused(tmp_path, "cut short")
    changed = bytearray(whole)
    changed[1000] ^= 1
    first.write_bytes(changed)
    refused(tmp_path, "was changed")
    first.unlink()
    refused(tmp_path, "is missing")
    first.write_bytes(whole)
    assert len(ShardSet.open(tmp_path).split("train")) == 12
    with pytest.raises(ClusterqError, match="no split 'heldout'"):
        ShardSet.open(tmp_path).split("heldout")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.update(format="clusterq-shards/9"), "has format 'clusterq-shards/9', this clusterq reads up to.*update"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="../../etc/passwd"), "no shard name"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="pipe:rm -rf x"), "no shard name"),
        (lambda m: m["splits"]["train"].update(samples=13), "do not add up"),
        (lambda m: m["splits"]["train"]["per_class"].append(0), "one entry for each"),
        (lambda m: m["teacher"]["spec"].update(size=-1), "sides must lie between 1 and 4096"),
        (lambda m: m["teacher"]["spec"].update(size="8x16"), "clusterq-shards/1 holds square images alone, .* 8x16 pixels"),
        (lambda m: m["teacher"]["spec"].update(size="8x99999"), "sides must lie between 1 and 4096"),
        (lambda m: m["teacher"]["spec"].update(size="8x" + "9" * 100_000), "expected one side of a square"),
        (lambda m: m.update(command="anything"), "extra inputs are not permitted"),
        (lambda m: m.update(splits={}), "no train split"),
        (lambda m: m["teacher"]["spec"].update(mean=[float("nan")]), "finite number"),
        (lambda m: m["pixels"].update(clipped=float("inf")), "finite number"),
        (lambda m: m.update(digest="sha256:" + "0" * 64), "digest is not that of the listed shards"),
        (lambda m: m.update(generation=None), "either a generation or a derivation"),
        (lambda m: m.update(class_names=["a"]), "1 class names for 3"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="synth-heldout-000000.tar"), "another split"),
        (lambda m: m["splits"]["train"]["shards"][1].update(file="synth-train-000000.tar"), "listed twice"),
        (lambda m: m.update(format="clusterq-shards/0"), "no manifest of clusterq"),
        (lambda m: m.update(format=["clusterq-shards/1"]), "no manifest of clusterq"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, change: Callable[[dict[str, object]], object], sentence: str) -> None:
    write_set(tmp_path)
    edit_manifest(tmp_path, change)
    refused(tmp_path, sentence)


def test_a_square_set_may_say_the_second_version(tmp_path: Path) -> None:
    write_set(tmp_path)
    edit_manifest(tmp_path, lambda m: m.update(format="clusterq-shards/2"))
    assert read_manifest(tmp_path).teacher.spec.size == 8


def test_manifest_that_is_no_json_or_nested_too_deeply(tmp_path: Path) -> None:
    write_set(tmp_path)
    for text in ("{", "[" * 100_000, "[]", "3"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ClusterqError, match=r"no JSON|has format None"):
            read_manifest(tmp_path)


def hostile(folder: Path, build: Callable[[tarfile.TarFile], None]) -> None:
    """Replace the only shard by a tar of the test's own, with a manifest that agrees with it."""
    write_set(folder, 3)
    path = folder / "synth-train-000000.tar"
    with tarfile.open(path, "w") as tar:
        build(tar)
    agree(folder)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"0", kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
    tar.addfile(info, io.BytesIO(data))


def sample_members(tar: tarfile.TarFile, key: str = "00000000", **changed: bytes) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, np.float16))
    good = {
        "png": encode_png(torch.zeros(1, 8, 8, dtype=torch.uint8)),
        "cls": b"1",
        "json": b"{}",
        "logits.npy": buffer.getvalue(),
    }
    for suffix, data in {**good, **changed}.items():
        add(tar, f"{key}.{suffix}", data)


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("00000000.pkl", b"cos\nsystem\n", tarfile.REGTYPE),
        ("00000000.pyd", b"x", tarfile.REGTYPE),
        ("../00000000.png", b"x", tarfile.REGTYPE),
        ("/00000000.png", b"x", tarfile.REGTYPE),
        ("00000000.png", b"", tarfile.SYMTYPE),
        ("00000000.png", b"", tarfile.LNKTYPE),
        ("00000000.cls", b"", tarfile.CHRTYPE),
        ("00000000.json", b" " * (2 << 20), tarfile.REGTYPE),
    ],
)
def test_members_that_are_refused(tmp_path: Path, name: str, data: bytes, kind: bytes) -> None:
    hostile(tmp_path, lambda tar: add(tar, name, data, kind))
    refused(tmp_path, "no member of a clusterq shard")


def test_samples_that_are_incomplete_or_doubled(tmp_path: Path) -> None:
    hostile(tmp_path / "a", lambda tar: add(tar, "00000000.png"))
    refused(tmp_path / "a", "expected")

    def twice(tar: tarfile.TarFile) -> None:
        sample_members(tar)
        sample_members(tar)

    hostile(tmp_path / "b", twice)
    refused(tmp_path / "b", "twice")
    hostile(tmp_path / "c", lambda tar: sample_members(tar))
    refused(tmp_path / "c", "holds 1 samples, expected 3")


def agree(folder: Path) -> None:
    """The manifest follows whatever the first shard has become."""
    path = folder / "synth-train-000000.tar"
    facts = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    edit_manifest(folder, lambda m: m["splits"]["train"]["shards"][0].update(facts))


def with_size(field: bytes) -> bytes:
    """A tar header that claims this size for a .cls member, its checksum in order."""
    info = tarfile.TarInfo("00000000.cls")
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"\0" * 1024


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (b"77777777777\0", "no member of a clusterq shard"),
        (b"\x80" + b"\x00" * 3 + b"\x7f" * 8, "no member of a clusterq shard"),
        (b"\xff" * 12, "no member of a clusterq shard"),
        (b"\xff" * 8 + b"\x00" * 4, "no member of a clusterq shard"),
        (b"junk junk!!\0", "no readable tar"),
    ],
)
def test_giant_and_negative_sizes_in_a_tar(tmp_path: Path, field: bytes, sentence: str) -> None:
    write_set(tmp_path, 3)
    (tmp_path / "synth-train-000000.tar").write_bytes(with_size(field))
    agree(tmp_path)
    refused(tmp_path, sentence)


def test_compressed_and_truncated_tars(tmp_path: Path) -> None:
    write_set(tmp_path, 3)
    path = tmp_path / "synth-train-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(gzip.compress(whole))
    agree(tmp_path)
    refused(tmp_path, "no readable tar")
    path.write_bytes(whole[:700])
    agree(tmp_path)
    refused(tmp_path, r"expected|no readable tar")
    # Cut in the middle of the last image: its headers are all there, the data is not.
    path.write_bytes(whole[: whole.rindex(b"IDAT") + 10])
    agree(tmp_path)
    refused(tmp_path, r"expected|no readable tar")


def test_a_manifest_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    write_set(tmp_path)
    with (tmp_path / "manifest.json").open("r+b") as file:
        file.truncate(100 << 20)
    with pytest.raises(ClusterqError, match=r"104857600 bytes, expected at most"):
        read_manifest(tmp_path)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


HUGE = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f2', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"


@pytest.mark.parametrize(
    ("member", "data", "sentence"),
    [
        ("cls", b"7", "expected a number below 3"),
        ("cls", b"-1", "expected a number below 3"),
        ("cls", b"1" * 5000, "expected a number below 3"),
        ("png", b"junk", "cannot be decoded"),
        ("logits.npy", npy(np.array([None, 1, 2], dtype=object)), "expected float16"),
        ("logits.npy", npy(np.zeros(3, np.float32)), "expected float16"),
        ("logits.npy", npy(np.zeros(4, np.float16)), "expected float16"),
        ("logits.npy", npy(np.array([np.nan, 0, 0], np.float16)), "not finite"),
        ("logits.npy", HUGE, "expected float16"),
        ("logits.npy", b"junk", "cannot be read"),
        ("logits.npy", b"\x93NUMPY\x01\x00\x08\x00" + b"(((((((\n", "cannot be read"),
    ],
)
def test_contents_that_are_refused(tmp_path: Path, member: str, data: bytes, sentence: str) -> None:
    def build(tar: tarfile.TarFile) -> None:
        for number in range(3):
            sample_members(tar, f"{number:08d}", **{member: data})

    hostile(tmp_path, build)
    shards = ShardSet.open(tmp_path)
    with pytest.raises(ClusterqError, match=sentence):
        shards.split("train").read_sample(0)


@given(st.integers(0, 1 << 12), st.binary(min_size=1, max_size=8))
def test_a_spoilt_tar_with_an_agreeing_manifest_is_read_or_refused(spoilt_set: Path, place: int, junk: bytes) -> None:
    path = spoilt_set / "synth-train-000000.tar"
    whole = path.read_bytes()
    place %= len(whole) - len(junk)
    path.write_bytes(whole[:place] + junk + whole[place + len(junk) :])
    try:
        with suppress(ClusterqError):
            manifest = read_manifest(spoilt_set)
            index = index_tar(path, manifest)
            split = SplitReader(spoilt_set, manifest, manifest.splits["train"].shards, [index])
            for number in range(len(split)):
                split.read_sample(number)
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def spoilt_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoilt")
    write_set(folder, 3)
    return folder


@pytest.fixture(scope="module")
def good_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_set(folder, 3)
    return folder


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_flipped_byte_is_found(good_set: Path, place: int, flip: int) -> None:
    path = good_set / "synth-train-000000.tar"
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[place % len(whole)] ^= flip
    path.write_bytes(changed)
    try:
        with pytest.raises(ClusterqError, match="was changed"):
            ShardSet.open(good_set)
    finally:
        path.write_bytes(whole)
