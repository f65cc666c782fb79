"""Contents of a manifest: they are covered by a digest of their own; images and normalisations are not mixed; pixels are plain."""

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.images import png
from clusterq_common.shards import manifest as manifests
from clusterq_common.shards.derive import merge, subset
from clusterq_common.shards.manifest import GIVEN, meaning_of, read_manifest, short_classes
from clusterq_common.shards.read import ShardSet
from clusterq_finetune.shards_tools.commands import describe
from tests.common.shard_samples import edit_manifest, write_set


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """As an attacker or an accident would: nothing is brought into agreement."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["teacher"]["spec"].update(mean=[0.41]),
        lambda m: m["teacher"].update(arch="resnet56_cifar10"),
        lambda m: m.update(license="MIT"),
        lambda m: m.update(note="another"),
        lambda m: m["generation"]["settings"].update(lr=0.2),
        lambda m: m["generation"].update(seed=7),
        lambda m: m.update(class_names=["a", "b", "c"]),
        lambda m: m["splits"]["train"]["shards"][0].update(sha256="0" * 64),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    write_set(tmp_path)
    assert read_manifest(tmp_path).meaning is not None
    rewrite(tmp_path, change)
    with pytest.raises(ClusterqError, match=r"^shards: .*manifest.json was changed after it was written.*get the set again"):
        read_manifest(tmp_path)


def test_another_layout_of_the_same_values_is_read(tmp_path: Path) -> None:
    write_set(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(dict(reversed(values.items())), indent=7))
    assert read_manifest(tmp_path).meaning == values["meaning"] == meaning_of(values)


def test_sets_of_before_are_read_and_said_to_lack_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path)
    rewrite(tmp_path, lambda m: m.pop("meaning"))
    manifests._said_of.clear()
    assert read_manifest(tmp_path).meaning is None
    assert "has no digest of its own" in capsys.readouterr().err
    assert ShardSet.open(tmp_path).manifest.meaning is None
    assert not capsys.readouterr().err


def test_a_derived_set_has_one_of_its_own(tmp_path: Path) -> None:
    write_set(tmp_path / "a")
    subset(ShardSet.open(tmp_path / "a"), tmp_path / "b", per_class=2)
    assert read_manifest(tmp_path / "b").meaning not in {None, read_manifest(tmp_path / "a").meaning}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m["teacher"]["spec"].update(mean=[0.41]), r"has mean \(0.41,\), .* \(0.4,\)"),
        (lambda m: m["teacher"]["spec"].update(std=[0.31]), r"has std \(0.31,\)"),
        (lambda m: m["teacher"]["spec"].update(size=9), "has size 9, .* 8"),
        (lambda m: m["teacher"]["spec"].update(channels=3, mean=[0.4] * 3, std=[0.3] * 3), "has channels 3, .* 1"),
    ],
)
def test_sets_whose_images_differ_are_not_merged(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    write_set(tmp_path / "a")
    write_set(tmp_path / "b", seed=1)
    edit_manifest(tmp_path / "b", change)
    with pytest.raises(ClusterqError, match=sentence):
        merge([ShardSet.open(tmp_path / name) for name in ("a", "b")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def encoded(array: np.ndarray, mode: str | None = None, **about: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(buffer, "PNG", **about)
    return buffer.getvalue()


def sixteen_bit_colour() -> bytes:
    """PIL reads it as plain RGB and writes none: the header of an eight-bit image of twice the width is changed."""
    data = bytearray(encoded(np.zeros((8, 16, 3), np.uint8)))
    data[16:20] = (8).to_bytes(4, "big")
    data[24] = 16
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


GREY, COLOUR = np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "channels"),
    [
        (sixteen_bit_colour(), 3),
        (encoded(np.zeros((8, 8), np.uint16)), 1),
        (encoded(GREY, "1"), 1),
        (encoded(COLOUR, "P"), 3),
        (encoded(COLOUR, "RGBA"), 3),
        (encoded(GREY, "LA"), 1),
        (encoded(COLOUR, transparency=(0, 0, 0)), 3),
        (encoded(GREY, transparency=0), 1),
        (encoded(COLOUR, save_all=True, append_images=[Image.fromarray(COLOUR + 1)]), 3),
    ],
)
def test_pixels_that_are_not_plain_are_refused(data: bytes, channels: int) -> None:
    with pytest.raises(ClusterqError, match="expected"):
        png.decode(data, (8, 8), channels)


def test_plain_pixels_are_read() -> None:
    for array in (GREY[:, :, None], COLOUR):
        assert (png.decode(png.encode(array), (8, 8), array.shape[2]) == array).all()


def test_classes_that_are_short_are_counted() -> None:
    assert short_classes([0, 0]) is None
    assert short_classes([0, 2]) == "1 class got fewer images than wanted: 1 (2 missing)"
    assert (short_classes([1] * 9) or "").startswith("9 classes got fewer images than wanted: 0 (1 missing), 1 (1 missing)")
    assert (short_classes([1] * 9) or "").endswith("7 (1 missing), ...")


def test_a_summary_names_classes_with_fewer_images_than_were_asked_for(tmp_path: Path) -> None:
    write_set(tmp_path, 11)  # three classes of four images: the last one is missing
    manifest = read_manifest(tmp_path)
    assert sorted(manifest.missing("train")) == [0, 0, 1]
    assert any("1 class got fewer images than wanted: " in line for line in describe(manifest))
    for change in ({"method": GIVEN}, {"labels": "teacher"}, {"rounds": [{"train": 3}]}):
        assert manifest.generation is not None
        other = manifest.model_copy(update={"generation": manifest.generation.model_copy(update=change)})
        assert other.missing("train") == [0, 0, 0]
        assert not any("fewer images" in line for line in describe(other))
