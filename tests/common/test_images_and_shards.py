"""Pixels, PNG, and shards: written, read back, and refused when they are not what they should be."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from clusterq_common.images import clipped_fraction, decode_png, encode_png, normalise, pixel_bounds, to_pixels
from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.files import sha256_file
from clusterq_common.shards import write
from clusterq_common.shards.manifest import Generation, Manifest, Split, TeacherFacts, read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.write import Sample, SplitWriter, write_manifest
from clusterq_common.teacher.spec import InputSpec

GREY = InputSpec(size=8, channels=1, num_classes=3, mean=(0.4,), std=(0.3,))
COLOUR = InputSpec(size=16, channels=3, num_classes=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize("spec", [GREY, COLOUR])
def test_pixels_survive_every_way_there_and_back(spec: InputSpec) -> None:
    pixels = torch.randint(256, (5, spec.channels, spec.size, spec.size), dtype=torch.uint8)
    assert torch.equal(to_pixels(normalise(pixels, spec), spec), pixels)
    for one in pixels:
        assert torch.equal(decode_png(encode_png(one), spec), one)
    assert encode_png(pixels[0]) == encode_png(pixels[0].clone())
    plain = (pixels.double() / 255 - torch.tensor(spec.mean).view(1, -1, 1, 1)) / torch.tensor(spec.std).view(1, -1, 1, 1)
    torch.testing.assert_close(normalise(pixels, spec).double(), plain, rtol=1e-5, atol=1e-5)


def test_bounds_and_clipping() -> None:
    low, high = pixel_bounds(COLOUR)
    assert to_pixels(low.expand(1, 3, 2, 2), COLOUR).max() == 0
    assert to_pixels(high.expand(1, 3, 2, 2), COLOUR).min() == 255
    images = torch.stack([low[0].expand(3, 2, 2), high[0].expand(3, 2, 2) + 1])
    assert clipped_fraction(images, COLOUR) == 0.5


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (png(Image.new("L", (9, 8))), "L 9x8"),
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


def samples(count: int, *, logits: bool = True, seed: int = 0) -> list[Sample]:
    random = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        pixels = torch.randint(256, (1, 8, 8), dtype=torch.uint8, generator=random)
        values = torch.randn(3, generator=random).half().numpy() if logits else None
        made.append(Sample(pixels, encode_png(pixels), number % 3, seed, number // 3, number % 3, 0.9, values))
    return made


def manifest_of(splits: dict[str, Split], *, logits: bool = True) -> Manifest:
    return Manifest(
        created_by="clusterq test",
        teacher=TeacherFacts(arch="resnet20_cifar10", is_factory=False, digest="sha256:" + "0" * 64, spec=GREY),
        generation=Generation(
            method="gdfq",
            settings={"lr": 0.1},
            seed=0,
            attempts=[4, 4, 4],
            candidates=12,
            rejected=[0, 0, 0],
            teacher_agreement=1.0,
            mean_confidence=0.9,
            clipped=0.0,
            keep_misclassified=False,
            chunk=64,
        ),
        splits=splits,
        has_logits=logits,
        versions={},
    )


def write_set(folder: Path, count: int = 12, *, logits: bool = True) -> list[Sample]:
    made = samples(count, logits=logits)
    with SplitWriter(folder, "train", samples_per_shard=5) as writer:
        for sample in made:
            writer.write(sample)
    per_class = [sum(sample.label == label for sample in made) for label in range(3)]
    write_manifest(
        folder, manifest_of({"train": Split(samples=count, per_class=per_class, shards=writer.shards)}, logits=logits)
    )
    return made


@pytest.mark.parametrize("logits", [True, False])
def test_what_is_written_is_read(tmp_path: Path, logits: bool) -> None:
    made = write_set(tmp_path, logits=logits)
    shards = ShardSet.open(tmp_path)
    refs = shards.samples("train")
    assert [ref.key for ref in refs] == [f"{n:08d}" for n in range(12)]
    assert {ref.shard for ref in refs} == {f"synth-train-{n:06d}.tar" for n in range(3)}
    for ref, sample in zip(refs, made, strict=True):
        pixels, label, values = shards.read(ref)
        assert torch.equal(pixels, sample.pixels)
        assert label == sample.label
        if sample.logits is None:
            assert values is None
        else:
            np.testing.assert_array_equal(values, sample.logits)
    assert not list(tmp_path.glob("*.partial"))


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_set(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert sha256_file(file) == sha256_file(tmp_path / "b" / file.name), file.name


def test_webdataset_itself_reads_them(tmp_path: Path) -> None:
    made = write_set(tmp_path)
    urls = sorted(str(path) for path in tmp_path.glob("*.tar"))
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [int(sample["cls"]) for sample in found] == [sample.label for sample in made]
    assert found[3]["png"] == made[3].png
    assert json.loads(found[3]["json"])["teacher_top1"] == 0


def test_indexes_for_other_tools(tmp_path: Path) -> None:
    write_set(tmp_path)
    info = json.loads((tmp_path / "_info.json").read_text())
    assert info["splits"]["train"]["shard_lengths"] == [5, 5, 2]
    wids = json.loads((tmp_path / "wids-train.json").read_text())
    assert sum(shard["nsamples"] for shard in wids["shardlist"]) == 12
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n")
    assert "synth-train-*.tar" in card.split("---")[1]


def test_a_writer_that_fails_leaves_no_half_shard(tmp_path: Path) -> None:
    with pytest.raises(KeyError), SplitWriter(tmp_path, "train", samples_per_shard=5) as writer:
        for number, sample in enumerate(samples(12)):
            if number == 7:
                raise KeyError("stop")
            writer.write(sample)
    assert [path.name for path in tmp_path.iterdir()] == ["synth-train-000000.tar"]


def test_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "publish", full)
    with pytest.raises(ClusterqError, match="disk is full"), SplitWriter(tmp_path, "train") as writer:
        writer.write(samples(1)[0])


def edit_manifest(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(ClusterqError, match=sentence):
        ShardSet.open(folder).samples("train")


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
    assert len(ShardSet.open(tmp_path).samples("train")) == 12
    with pytest.raises(ClusterqError, match="no split 'heldout'"):
        ShardSet.open(tmp_path).samples("heldout")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.update(format="clusterq-shards/9"), "has format 'clusterq-shards/9'"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="../../etc/passwd"), "no shard name"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="pipe:rm -rf x"), "no shard name"),
        (lambda m: m["splits"]["train"].update(samples=13), "do not add up"),
        (lambda m: m["splits"]["train"]["per_class"].append(0), "one entry for each"),
        (lambda m: m["teacher"]["spec"].update(size=-1), "greater than or equal to 1"),
        (lambda m: m.update(command="anything"), "extra inputs are not permitted"),
        (lambda m: m.update(splits={}), "no train split"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, change: Callable[[dict[str, object]], object], sentence: str) -> None:
    write_set(tmp_path)
    edit_manifest(tmp_path, change)
    refused(tmp_path, sentence)


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
    digest, size = sha256_file(path), path.stat().st_size
    edit_manifest(folder, lambda m: m["splits"]["train"]["shards"][0].update(sha256=digest, bytes=size))  # type: ignore[index]


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


def npy(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


HUGE = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f2', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"


@pytest.mark.parametrize(
    ("member", "data", "sentence"),
    [
        ("cls", b"7", "expected a number below 3"),
        ("cls", b"-1", "expected a number below 3"),
        ("png", b"junk", "cannot be decoded"),
        ("logits.npy", npy(np.array([None, 1, 2], dtype=object)), "expected float16"),
        ("logits.npy", npy(np.zeros(3, np.float32)), "expected float16"),
        ("logits.npy", npy(np.zeros(4, np.float16)), "expected float16"),
        ("logits.npy", npy(np.array([np.nan, 0, 0], np.float16)), "not finite"),
        ("logits.npy", HUGE, "expected float16"),
        ("logits.npy", b"junk", "cannot be read"),
    ],
)
def test_contents_that_are_refused(tmp_path: Path, member: str, data: bytes, sentence: str) -> None:
    def build(tar: tarfile.TarFile) -> None:
        for number in range(3):
            sample_members(tar, f"{number:08d}", **{member: data})

    hostile(tmp_path, build)
    shards = ShardSet.open(tmp_path)
    with pytest.raises(ClusterqError, match=sentence):
        shards.read(shards.samples("train")[0])


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


def tensor_of(shards: ShardSet) -> Tensor:
    return torch.stack([shards.read(ref)[0] for ref in shards.samples("train")])


def test_run_folder_and_bare_folder_are_the_same_set(tmp_path: Path) -> None:
    write_set(tmp_path / "run" / "shards")
    assert torch.equal(tensor_of(ShardSet.open(tmp_path / "run")), tensor_of(ShardSet.open(tmp_path / "run" / "shards")))
