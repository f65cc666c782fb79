"""Sets of one's own images, and sets read through webdataset."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import clusterq as cq
from clusterq_common.files import sha256_file
from clusterq_common.shards.manifest import read_manifest
from clusterq_common.shards.recheck import logits_tolerance
from clusterq_common.shards.verify import verify_set
from tests.common.shard_samples import edit_manifest, write_set
from tests.conftest import Cli, DigitsTeacher


@pytest.fixture(scope="module")
def pixels(digits_teacher: DigitsTeacher) -> tuple[torch.Tensor, torch.Tensor]:
    """Some real digits and their labels."""
    paths = sorted(digits_teacher.val.rglob("*.png"))[::4]
    images = [torch.from_numpy(np.array(Image.open(path).convert("L")))[None] for path in paths]
    return torch.stack(images), torch.tensor([int(path.parent.name) for path in paths])


@pytest.fixture(scope="module")
def own(teacher: cq.Teacher, pixels: tuple[torch.Tensor, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of them in several shards, with held-out ones."""
    folder = tmp_path_factory.mktemp("own") / "set"
    names = [str(label) for label in range(10)]
    with cq.ShardWriter(folder, teacher, class_names=names, note="digits", samples_per_shard=50) as writer:
        writer.add(pixels[0][:70])
        writer.add(cq.normalise(pixels[0][70:100], teacher.spec))
        assert not (folder / "manifest.json").exists(), "written last"
        writer.add(pixels[0][100:], split="heldout")
    assert writer.manifest == read_manifest(folder)
    return folder


def test_a_set_of_ones_own_images(
    own: Path, teacher: cq.Teacher, pixels: tuple[torch.Tensor, torch.Tensor], finetune: Cli
) -> None:
    shards = cq.ShardSet.open(own)
    manifest = shards.manifest
    assert not verify_set(own, manifest)
    train, made = shards.split("train"), manifest.generation
    assert (len(train), len(shards.split("heldout"))) == (100, len(pixels[0]) - 100)
    assert [shard.samples for shard in manifest.splits["train"].shards] == [50, 50]
    assert made is not None
    assert (made.method, made.labels, made.teacher_agreement, made.rejected) == ("given", "teacher", 1.0, [0] * 10)
    assert made.candidates == len(pixels[0])
    assert manifest.teacher.digest == teacher.digest
    answers = teacher.model(cq.normalise(pixels[0][:100], teacher.spec))
    for number in range(len(train)):
        image, label, logits = train.read(number)
        np.testing.assert_array_equal(image[:, :, 0], pixels[0][number, 0])
        assert label == int(answers[number].argmax())
        apart = np.abs(logits - answers[number].numpy()).max()
        assert apart <= float(logits_tolerance(answers[number][None])[0])
    card = (own / "README.md").read_text()
    assert "clusterq does not know" in card
    assert "It holds no real image" not in card
    assert "synthetic" not in card.lower()
    shown = finetune("shards", "info", own)
    assert "made by:   someone's own images" in shown.out
    done = finetune("shards", "verify", own)
    assert done.code == 0, done.err


def test_such_a_set_is_learned_from(
    own: Path, teacher: cq.Teacher, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    student = cq.finetune(teacher, cq.ShardSet.open(own), recipe=cq.Recipe(epochs=1, steps_per_epoch=4, select="guarded"))
    assert cq.evaluate(student, cq.open_images(digits_teacher.val, teacher.spec)).top1 > 90
    words = ("--shards", own, "--bits", "w4a4", "--epochs", 1, "--steps-per-epoch", 2, "--no-report", *digits_teacher.flags[:4])
    done = finetune(*words, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["shards"]["method"] == "given"


def test_labels_of_ones_own(teacher: cq.Teacher, pixels: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    images, labels = pixels[0][:20], pixels[1][:20].clone()
    labels[0] = (labels[0] + 1) % 10
    with cq.ShardWriter(tmp_path / "set", teacher) as writer:
        writer.add(images, labels)
        with pytest.raises(cq.ClusterqError, match="for all of a set, or for none"):
            writer.add(images)
        with pytest.raises(cq.ClusterqError, match="whole numbers below 10"):
            writer.add(images, labels + 10)
        with pytest.raises(cq.ClusterqError, match=r"expected \(N, 1, 8, 8\)"):
            writer.add(images[:, :, :4], labels)
    made = writer.manifest.generation
    assert made is not None
    top1 = teacher.model(cq.normalise(images, teacher.spec)).argmax(1)
    assert made.teacher_agreement == int((top1 == labels).sum()) / 20 < 1
    reader = cq.ShardSet.open(tmp_path / "set").split("train")
    assert [reader.label(number) for number in range(20)] == labels.tolist()
    assert made.labels == "asked"


def test_what_fails_leaves_no_set(teacher: cq.Teacher, pixels: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt), cq.ShardWriter(folder, teacher, samples_per_shard=8) as writer:
        writer.add(pixels[0][:20])
        assert len(list(folder.iterdir())) == 2
        raise KeyboardInterrupt
    assert not list(folder.iterdir())
    with (
        pytest.raises(cq.ClusterqError, match="no image was added to the split train"),
        cq.ShardWriter(folder, teacher) as writer,
    ):
        writer.add(pixels[0][:5], split="heldout")
    assert not list(folder.iterdir())
    (folder / "mine.txt").touch()
    with pytest.raises(cq.ClusterqError, match="not empty"):
        cq.ShardWriter(folder, teacher)
    with pytest.raises(cq.ClusterqError, match="class_names: 1 were given, expected 10"):
        cq.ShardWriter(tmp_path / "other", teacher, class_names=["one"])


@pytest.mark.parametrize("logits", [True, False])
def test_webdataset_reads_the_same(tmp_path: Path, logits: bool) -> None:
    write_set(tmp_path, logits=logits)
    shards = cq.ShardSet.open(tmp_path)
    reader, samples = shards.split("train"), list(shards.as_webdataset("train"))
    assert len(samples) == len(reader) == 12
    for number, sample in enumerate(samples):
        image, label, stored = reader.read(number)
        assert sample["__key__"] == reader.key(number)
        np.testing.assert_array_equal(sample["png"].permute(1, 2, 0).numpy(), image)
        assert sample["cls"] == sample["json"]["label"] == label
        assert ("logits.npy" in sample) == logits
        if stored is not None:
            np.testing.assert_array_equal(sample["logits.npy"].numpy(), stored)
        assert not [value for value in sample.values() if isinstance(value, bytes)], "nothing for webdataset to decode"


def test_it_is_a_pipeline_of_webdataset(tmp_path: Path) -> None:
    import webdataset

    write_set(tmp_path)
    pipeline = cq.ShardSet.open(tmp_path).as_webdataset()
    assert isinstance(pipeline, webdataset.DataPipeline)
    batches = list(pipeline.shuffle(100).to_tuple("png", "cls").batched(5))
    assert [tuple(images.shape) for images, _ in batches] == [(5, 1, 8, 8), (5, 1, 8, 8), (2, 1, 8, 8)]
    assert sorted(int(label) for _, labels in batches for label in labels) == sorted([0, 1, 2] * 4)
    keys = [sample["__key__"][0] for sample in DataLoader(pipeline, num_workers=2)]
    assert sorted(keys) == [f"{number:08d}" for number in range(12)], "workers share the tars out"


def test_a_damaged_tar_is_not_read(tmp_path: Path) -> None:
    write_set(tmp_path)
    shards = cq.ShardSet.open(tmp_path)
    path = tmp_path / "synth-train-000001.tar"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(cq.ClusterqError, match="was changed"):
        shards.as_webdataset()
    path.write_bytes(data[:-512])
    with pytest.raises(cq.ClusterqError, match="cut short"):
        shards.as_webdataset()
    with pytest.raises(cq.ClusterqError, match="no split"):
        shards.as_webdataset("heldout")


class Bomb:
    """Its unpickling would be seen."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


def spoil(folder: Path, name: str, data: bytes, place: int) -> None:
    """Put a member into the first shard, and let the manifest agree."""
    path = folder / "synth-train-000000.tar"
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]
    more = tarfile.TarInfo(name)
    more.size = len(data)
    members.insert(place, (more, data))
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    facts = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    edit_manifest(folder, lambda manifest: manifest["splits"]["train"]["shards"][0].update(facts))


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pth", "png.pyd"])
def test_a_pickle_is_never_loaded(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set")
    spoil(tmp_path / "set", f"00000000.{suffix}", pickle.dumps(Bomb()), 4)
    with pytest.raises(cq.ClusterqError, match="no member of a clusterq shard"):
        cq.ShardSet.open(tmp_path / "set").as_webdataset()
    assert not Path("exploded").exists()


def test_members_out_of_place_are_refused(tmp_path: Path) -> None:
    """webdataset puts neighbours together: it would make two samples of one whose members lie apart."""
    write_set(tmp_path)
    path = tmp_path / "synth-train-000000.tar"
    with tarfile.open(path) as tar:
        (member,) = [other for other in tar.getmembers() if other.name == "00000000.cls"]
        stream = tar.extractfile(member)
        assert stream is not None
        data = stream.read()
        rest = [(other, tar.extractfile(other).read()) for other in tar.getmembers() if other.name != "00000000.cls"]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for other, content in [*rest, (member, data)]:
            tar.addfile(other, io.BytesIO(content))
    facts = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    edit_manifest(tmp_path, lambda manifest: manifest["splits"]["train"]["shards"][0].update(facts))
    with pytest.raises(cq.ClusterqError, match="behind each other"):
        list(cq.ShardSet.open(tmp_path).as_webdataset())


def test_images_are_the_same_each_time(tmp_path: Path) -> None:
    write_set(tmp_path)
    images = cq.ShardSet.open(tmp_path).images(limit=7, batch_size=3)
    assert len(images) == 3
    first, again = list(images), list(images)
    assert [len(batch) for batch in first] == [3, 3, 1]
    assert all(torch.equal(image, other) for image, other in zip(first, again, strict=True))
    assert sum(len(batch) for batch in cq.ShardSet.open(tmp_path).images()) == 12
