"""`verify_set` finds everything that is wrong, each thing under its name; `repair` saves the rest."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clusterq_common.errors import ClusterqError
from clusterq_common.files import sha256_file
from clusterq_common.images import png
from clusterq_common.shards.derive import repair
from clusterq_common.shards.digest import sample_digest
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.verify import Problem, verify_set
from tests.common.shard_samples import edit_manifest, samples, write_set

FIRST = "synth-train-000000.tar"


def problems(folder: Path) -> list[Problem]:
    return verify_set(folder, read_manifest(folder))


def rewrite(folder: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], *, agree: bool = True) -> None:
    """Rewrite the first shard member by member; with `agree` the manifest's size and SHA-256 follow, not its content digest."""
    path = folder / FIRST
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for pair in members:
            changed = change(*pair)
            if changed is not None:
                info = tarfile.TarInfo(changed[0])
                info.size = len(changed[1])
                tar.addfile(info, io.BytesIO(changed[1]))
    if agree:
        facts = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        edit_manifest(folder, lambda m: m["splits"]["train"]["shards"][0].update(facts))


def test_a_good_set_has_no_problem_and_all_of_it_is_looked_at(tmp_path: Path) -> None:
    write_set(tmp_path)
    seen: list[int] = []
    assert verify_set(tmp_path, read_manifest(tmp_path), advance=seen.append) == []
    assert seen == [5, 5, 2]


def test_files(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "synth-train-000000.tar").unlink()
    second = tmp_path / "synth-train-000001.tar"
    second.write_bytes(second.read_bytes()[:-1024])
    third = tmp_path / "synth-train-000002.tar"
    data = bytearray(third.read_bytes())
    data[len(data) // 3] ^= 1
    third.write_bytes(data)
    (tmp_path / "synth-train-000007.tar").write_bytes(b"")
    (tmp_path / "synth-heldout-000000.tar.partial").write_bytes(b"")
    listed = problems(tmp_path)
    by_file = {problem.file: [other.what for other in listed if other.file == problem.file] for problem in listed}
    assert "is missing" in by_file["synth-train-000000.tar"][0]
    assert "cut short" in by_file["synth-train-000001.tar"][0]
    assert "SHA-256" in by_file["synth-train-000002.tar"][0]
    assert "not in the manifest" in by_file["synth-train-000007.tar"][0]
    assert "not in the manifest" in by_file["synth-heldout-000000.tar.partial"][0]


def relabel(name: str, data: bytes) -> tuple[str, bytes]:
    if name == "00000000.cls":
        return name, b"2"
    if name == "00000000.json":
        return name, json.dumps({**json.loads(data), "label": 2}).encode()
    return name, data


def replace_member(wanted: str, new: bytes) -> Callable[[str, bytes], tuple[str, bytes]]:
    return lambda name, data: (name, new if name == wanted else data)


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (relabel, None, "are not those that the manifest's content digest"),
        (replace_member("00000001.cls", b"2"), "00000001", "its .json says label 1, its .cls 2"),
        (replace_member("00000001.cls", b"5"), "00000001", "expected a number below 3"),
        (replace_member("00000002.png", b"junk"), "00000002", "cannot be decoded"),
        (replace_member("00000003.json", b"[1]"), "00000003", ".json cannot be used"),
        (replace_member("00000003.json", b'{"label": NaN}'), "00000003", ".json cannot be used"),
        (replace_member("00000004.logits.npy", b"junk"), "00000004", "logits cannot be read"),
        (lambda n, d: (n.replace("00000001", "00000005"), d), "00000005", "has a sample of the same key"),
        (lambda n, d: None if n.startswith("00000001") else (n, d), None, "holds 4 samples, the manifest says 5"),
        (lambda n, d: ("00000001.pkl", d) if n == "00000001.json" else (n, d), None, "no member of a clusterq shard"),
    ],
)
def test_samples(tmp_path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], key: str | None, words: str) -> None:
    write_set(tmp_path)
    rewrite(tmp_path, change)
    # The shard's hash fits: only looking at the samples shows it.
    assert any(problem.key == key and words in problem.what for problem in problems(tmp_path)), problems(tmp_path)


def test_counts_by_class(tmp_path: Path) -> None:
    write_set(tmp_path)
    edit_manifest(tmp_path, lambda m: m["splits"]["train"].update(per_class=[3, 5, 4]))
    assert [problem.what for problem in problems(tmp_path)] == ["class 0 has 4 samples in split train, the manifest says 3"]


def test_repair_saves_every_sample_that_can_be_read(tmp_path: Path) -> None:
    made = write_set(tmp_path / "set")
    rewrite(tmp_path / "set", replace_member("00000002.png", b"junk"), agree=False)
    (tmp_path / "set" / "synth-train-000001.tar").unlink()
    source = read_manifest(tmp_path / "set")
    mended = repair(tmp_path / "set", source, tmp_path / "mended")
    assert mended.splits["train"].samples == 12 - 1 - 5
    assert problems(tmp_path / "mended") == []
    split = ShardSet.open(tmp_path / "mended").split("train")
    assert [split.read_sample(n).png for n in range(6)] == [made[n].png for n in (0, 1, 3, 4, 10, 11)]
    assert mended.derivation is not None
    assert (mended.derivation.operation, mended.derivation.inputs) == ("repair", [source.digest])
    assert mended.parents[0].generation == source.generation


def test_repair_of_nothing(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    for path in (tmp_path / "set").glob("*.tar"):
        path.unlink()
    with pytest.raises(ClusterqError, match="no training image is left"):
        repair(tmp_path / "set", read_manifest(tmp_path / "set"), tmp_path / "mended")
    assert not (tmp_path / "mended").exists()


def test_sample_digest_is_of_label_and_pixels() -> None:
    pixels = png.decode(samples(1)[0].png, (8, 8), 1)
    assert sample_digest(1, pixels) != sample_digest(11, pixels)
    assert sample_digest(1, pixels) == sample_digest(1, np.ascontiguousarray(pixels.copy()))
    assert sample_digest(1, pixels) != sample_digest(1, pixels.reshape(4, 16, 1))
    assert sample_digest(1, pixels) != sample_digest(1, pixels ^ 1)
