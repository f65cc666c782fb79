"""Real images in the layouts people have them in: the same images, whatever holds them."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.preprocess import preprocess
from clusterq_finetune.data.real import ValidationImages, open_validation
from clusterq_finetune.data.real.labels import imagenet_wnids

IMAGENET = InputSpec(size=96, channels=3, num_classes=1000, mean=(0.5,) * 3, std=(0.5,) * 3)
CIFAR = InputSpec(size=32, channels=3, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
LABELS = [865, 0, 999, 65, 970]


def photographs() -> dict[str, bytes]:
    """Five JPEGs with the names of ImageNet's first five validation images."""
    random = np.random.default_rng(0)
    made = {}
    for number in range(5):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (120 + number, 140, 3), dtype=np.uint8)).save(buffer, "JPEG")
        made[f"ILSVRC2012_val_{number + 1:08d}.JPEG"] = buffer.getvalue()
    return made


def refused(path: Path, sentence: str, spec: InputSpec = IMAGENET) -> None:
    with pytest.raises(ClusterqError, match=sentence):
        open_validation(path, spec)


def check(images: ValidationImages, layout: str) -> None:
    """All five, in their order, with their labels and pixels."""
    assert layout in images.layout
    assert len(images) == 5
    for index, (name, data) in enumerate(photographs().items()):
        pixels, label, shown = images[index]
        assert label == LABELS[index]
        assert name.split(".")[0][-8:] in shown
        assert pixels is not None
        assert torch.equal(pixels, preprocess(Image.open(io.BytesIO(data)), IMAGENET, known_geometry(224)))


def kaggle(root: Path) -> Path:
    """As the archive unpacks: ILSVRC/Data/CLS-LOC/val beside LOC_val_solution.csv."""
    folder = root / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    folder.mkdir(parents=True)
    wnids = imagenet_wnids()
    lines = ["ImageId,PredictionString"]
    for (name, data), label in zip(photographs().items(), LABELS, strict=True):
        (folder / name).write_bytes(data)
        lines.append(f"{name.split('.')[0]},{wnids[label]} 1 2 3 4 {wnids[label]} 5 6 7 8")
    (root / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_kaggle(tmp_path: Path) -> None:
    folder = kaggle(tmp_path)
    check(open_validation(folder, IMAGENET), "Kaggle")
    refused(folder, "the teacher has 10", CIFAR)
    table = tmp_path / "LOC_val_solution.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    refused(folder, "no line for ILSVRC2012_val_00000005.JPEG")
    table.write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,dog 1 2 3 4\n")
    refused(folder, "line 2 of .* is no pair")
    table.write_text("ImageId,PredictionString\nA,n01440764 1\nA,n01443537 1\n")
    refused(folder, "line 3 of .* names another class than an earlier line")


def test_kaggles_table_in_other_encodings(tmp_path: Path) -> None:
    folder, table = kaggle(tmp_path), tmp_path / "LOC_val_solution.csv"
    text = table.read_text()
    table.write_text(text, encoding="utf-8-sig")
    check(open_validation(folder, IMAGENET), "Kaggle")
    for damaged in (text.encode("utf-16"), text.encode() + b"\xe9,n01440764\n", b'"' + b"x" * 200_000):
        table.write_bytes(damaged)
        refused(folder, "LOC_val_solution.csv is no CSV file in UTF-8")


def test_splits_are_no_classes(tmp_path: Path) -> None:
    """A teacher of two classes would take train/ and val/ for them."""
    spec = CIFAR.model_copy(update={"num_classes": 2})
    for split in ("train", "Val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / split / name / "0.png")
    refused(tmp_path, r"are named as splits \(Val, train\), expected one folder", spec)
    assert open_validation(tmp_path / "Val", spec).labels == [0, 1]
    # Where they are the classes, a list says so; Windows puts a mark in front of it.
    (tmp_path / "names").write_text("train\nVal\n", encoding="utf-8-sig")
    assert open_validation(tmp_path, spec, classes=tmp_path / "names").labels == [1, 1, 0, 0]


def tar_of(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def devkit() -> dict[str, bytes]:
    """Class numbers in an order of their own, as the real devkit has them."""
    wnids = imagenet_wnids()
    numbers = {label: 1000 - label for label in range(1000)}
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    synsets = np.array([(numbers[label], wnid, "words") for label, wnid in enumerate(wnids)], dtype=kind)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets}, do_compression=True)  # as the real one
    truth = "".join(f"{numbers[label]}\n" for label in LABELS).encode()
    base = "ILSVRC2012_devkit_t12/data/"
    return {f"{base}meta.mat": buffer.getvalue(), f"{base}ILSVRC2012_validation_ground_truth.txt": truth}


def packed_table(size: int) -> bytes:
    """A MATLAB file of zeros that are packed."""
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.zeros(size, np.uint8)}, do_compression=True)
    return buffer.getvalue()


@pytest.mark.parametrize("unpacked", [False, True])
def test_imagenets_tar_with_the_devkit(tmp_path: Path, unpacked: bool) -> None:
    # The members' order in the tar is not that of their names.
    tar_of(tmp_path / "ILSVRC2012_img_val.tar", dict(reversed(photographs().items())))
    refused(tmp_path, "there is no devkit")
    if unpacked:
        for name, data in devkit().items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
    else:
        tar_of(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", devkit(), "w:gz")
    check(open_validation(tmp_path, IMAGENET), "devkit")
    check(open_validation(tmp_path / "ILSVRC2012_img_val.tar", IMAGENET), "devkit")


def test_devkits_that_do_not_fit(tmp_path: Path) -> None:
    tar_of(tmp_path / "ILSVRC2012_img_val.tar", photographs())
    kit = devkit()
    meta, truth = kit
    for changed, sentence in (
        ({truth: b"1\n2\n"}, "5 images, the devkit's ground truth 2 lines"),
        ({truth: b"1\n2\n3\n4\n5000\n"}, "devkit's class 5000"),
        ({truth: b"a\nb\n"}, "does not hold numbers"),
        ({meta: b"junk"}, "meta.mat cannot be read"),
        ({meta: packed_table(5 << 20)}, "meta.mat cannot be read .it unpacks to more than"),
    ):
        tar_of(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", {**kit, **changed}, "w:gz")
        refused(tmp_path, sentence)


def test_webdataset_tars(tmp_path: Path) -> None:
    items = list(zip(photographs().items(), LABELS, strict=True))
    for number, part in enumerate((items[:3], items[3:])):
        members = {}
        for (name, data), label in part:
            members[name.replace(".JPEG", ".jpg")] = data
            members[name.replace(".JPEG", ".cls")] = str(label).encode()
            members[name.replace(".JPEG", ".json")] = b"{}"
        tar_of(tmp_path / f"val-{number:06d}.tar", members)
    check(open_validation(tmp_path, IMAGENET), "webdataset")
    assert len(open_validation(tmp_path / "val-000001.tar", IMAGENET)) == 2
    refused(tmp_path, "has label b'865', expected a number below 10", CIFAR)


def test_webdataset_keys_with_dots_are_named(tmp_path: Path) -> None:
    data = next(iter(photographs().values()))
    members = {"a.jpg": data, "a.cls": b"3", "a.json": b"{}", "b.v2.jpg": data, "b.v2.cls": b"4", "a.mask.PNG": data}
    tar_of(tmp_path / "val.tar", members)
    images = open_validation(tmp_path, IMAGENET)
    assert len(images) == 1
    assert images.remarks[0].count == 3
    assert images.remarks[0].names == ["val.tar/b.v2.jpg", "val.tar/b.v2.cls", "val.tar/a.mask.PNG"]


def test_webdataset_tars_that_are_refused(tmp_path: Path) -> None:
    tar = tmp_path / "val.tar"
    tar_of(tar, {"a.jpg": b"x"})
    refused(tar, r"sample a of .* has no label")
    tar_of(tar, {"a.cls": b"3"})
    refused(tar, r"sample a of .* has no image")
    tar_of(tar, {"a.pyd": b"3"})
    refused(tar, "hold no sample")
    tar.write_bytes(b"junk")
    refused(tar, "no readable tar")
    tar_of(tar, {"a.jpg": b"broken", "a.cls": b"3"})
    assert open_validation(tar, IMAGENET)[0] == (None, 3, "val.tar/a.jpg")


def batch(count: int = 4, **more: object) -> dict[bytes, object]:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": pixels, b"labels": list(range(count)), b"batch_label": b"testing batch 1 of 1", **more}


@pytest.mark.parametrize("protocol", [3, 4])
def test_cifar_10(tmp_path: Path, protocol: int) -> None:
    values = batch()
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps(values, protocol=protocol))
    for path in (folder, folder / "test_batch"):
        images = open_validation(path, CIFAR)
        assert "CIFAR" in images.layout
        assert images.labels == [0, 1, 2, 3]
        pixels, _, _ = images[2]
        expected = values[b"data"].reshape(-1, 3, 32, 32)[2]
        np.testing.assert_array_equal(pixels, expected)
    refused(folder, "is a batch of CIFAR, the teacher has 1000", IMAGENET)


def test_cifar_10_as_python_2_wrote_it(tmp_path: Path) -> None:
    """The published files are of protocol 2, with byte strings for everything: the opcodes of one, written by hand."""
    raw = batch(1)[b"data"].tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01M\x00\x0ct"
    array += b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    data = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07eu."
    (tmp_path / "test_batch").write_bytes(data)
    images = open_validation(tmp_path, CIFAR)
    assert images.labels == [7]
    np.testing.assert_array_equal(images[0][0], np.frombuffer(raw, np.uint8).reshape(3, 32, 32))


def test_cifar_100(tmp_path: Path) -> None:
    values = batch(fine_labels=[0])
    values = {**batch(3), b"fine_labels": [5, 99, 0], b"coarse_labels": [1, 1, 1]}
    (tmp_path / "test").write_bytes(pickle.dumps(values, protocol=4))
    assert open_validation(tmp_path, CIFAR.model_copy(update={"num_classes": 100})).labels == [5, 99, 0]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("owned",)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (batch(extra=Evil()), "it asks for builtins.print"),
        ({**batch(), b"data": np.zeros((4, 3072), np.float32)}, "array of 'f4'"),
        ({**batch(), b"data": np.array([None] * 4)}, "array of 'O8'"),
        ({**batch(), b"data": np.zeros((4, 3), np.uint8)}, "holds uint8"),
        ({**batch(), b"labels": [0, 1, 2, 10]}, "holds uint8"),
        ({**batch(), b"labels": [0, 1, 2, 3.7]}, "TypeError"),
        ({b"labels": []}, "KeyError"),
        (3, "TypeError"),
    ],
)
def test_cifar_batches_that_are_refused(
    tmp_path: Path, values: object, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(values, protocol=4))
    refused(tmp_path, sentence, CIFAR)
    assert "owned" not in capsys.readouterr().out


def test_unknown_files(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"")
    refused(tmp_path / "images.zip", "a file of no known kind, expected class folders")


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_webdataset_tars_of_any_archiver(tmp_path: Path, format_: int) -> None:
    folder = "f" * 80 + "/" + "g" * 60
    with tarfile.open(tmp_path / "val.tar", "w", format=format_) as tar:
        parent = tarfile.TarInfo("f" * 80)
        parent.type = tarfile.DIRTYPE
        tar.addfile(parent)
        for (name, data), label in zip(photographs().items(), LABELS, strict=True):
            for suffix, content in ((".jpg", data), (".cls", str(label).encode())):
                info = tarfile.TarInfo(f"{folder}/{name.replace('.JPEG', suffix)}")
                info.size, info.mtime = len(content), 1.5 if format_ == tarfile.PAX_FORMAT else 1
                tar.addfile(info, io.BytesIO(content))
    check(open_validation(tmp_path / "val.tar", IMAGENET), "webdataset")


def test_webdataset_tars_of_other_image_files_and_in_capitals(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(buffer, "TIFF")
    tar_of(tmp_path / "VAL.TAR", {"0.TIF": buffer.getvalue(), "0.cls": b"3"})
    for path in (tmp_path, tmp_path / "VAL.TAR"):
        pixels, label, _ = open_validation(path, CIFAR)[0]
        assert (label, int(pixels.float().mean())) == (3, 9)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("0.png", b"x"), ("0.jpg", b"y"), ("0.cls", b"1")], "two members for one key, '0.png' and '0.jpg'"),
        ([("0.png", b"x"), ("0.cls", b"0"), ("0.cls", b"1")], "two members for one key, '0.cls' and '0.cls'"),
        ([("0.png", b"x"), ("0.cls", b"1" + b" " * 30 + b"9")], "has label b'1', expected a number"),
        ([("0.bmp", b"x"), ("1.png", b"x"), ("1.cls", b"1")], r"sample 0 of .* has no label \(.cls\)"),
    ],
)
def test_keys_with_two_meanings_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], sentence: str) -> None:
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    refused(tmp_path, sentence, CIFAR)


def test_odd_tars_of_real_images_are_refused(tmp_path: Path) -> None:
    tar = tmp_path / "val.tar"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"comment": "1" * 100_000}
        file.addfile(info)
    refused(tar, "a header in it has .* bytes, expected at most")
    with tarfile.open(tar, "w") as file:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(info)
    refused(tar, "'a.jpg' in it is no plain file")
    tar_of(tmp_path / "ILSVRC2012_img_val.tar", photographs())
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"junk")
    refused(tmp_path / "ILSVRC2012_img_val.tar", "no readable devkit")
