"""The whole job on images that are not square, wide and tall: what swaps height and width is found by where the classes lie."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import clusterq as cq
from clusterq_common.export.runtime import OnnxModel
from tests.conftest import Cli, Outcome

SIZES = {"wide": (16, 32), "tall": (32, 16)}
CLASSES, EACH = 8, 12
# A class is the place of a bright spot in two rows of four cells, or in four rows of two. The last layer sees places, not a mean.
FACTORY = """
from torch import nn


def net() -> nn.Module:
    layers = [nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 32, 8))
"""
OWN = """
from pathlib import Path

import numpy as np
from PIL import Image


def images():
    for path in sorted((Path(__file__).parent / "val").glob("*/*.png")):
        yield np.array(Image.open(path)), int(path.parent.name)
"""
TINY = [
    "--preset",
    "quick",
    "--epochs",
    "3",
    "--steps-per-epoch",
    "40",
    "--warmup-epochs",
    "2",
    "--batch-size",
    "32",
    "--width",
    "16",
]
TINY += [
    "--lr",
    "0.01",
    "--bits",
    "w8a8",
    "--per-class",
    "8",
    "--amp",
    "off",
    "--refine-steps",
    "4",
    "--checkpoint-seconds",
    "0",
]


@dataclass(frozen=True)
class Job:
    """A teacher of one shape on disk, its real images, and the run made from it."""

    folder: Path
    size: tuple[int, int]
    pixels: Tensor
    labels: Tensor
    top1: float

    @property
    def flags(self) -> list[str]:
        return ["--arch", f"{self.folder / 'net.py'}:net", "--weights", str(self.folder / "teacher.safetensors"), *self.sizes]

    @property
    def sizes(self) -> list[str]:
        shown = "x".join(map(str, self.size))
        return ["--input-size", shown, "--in-channels", "1", "--num-classes", "8", "--mean", "0.5", "--std", "0.5"]

    @property
    def run(self) -> Path:
        return self.folder / "out"


def spots(size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) uint8 of noise with one bright spot, and its cell, row by row."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat(EACH)
    pixels = torch.randint(110, (len(labels), 1, *size), generator=random, dtype=torch.uint8)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        top, left = divmod(label, size[1] // 8)
        image[0, 8 * top + 2 : 8 * top + 7, 8 * left + 2 : 8 * left + 7] += 120
    return pixels, labels


def normalised(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - 0.5) / 0.5


def done(outcome: Outcome) -> dict[str, Any]:
    """The JSON result of a command that has to work."""
    assert outcome.code == 0, outcome.err
    result: dict[str, Any] = json.loads(outcome.out.splitlines()[-1])
    return result


@pytest.fixture(scope="module", params=list(SIZES))
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, gen: Cli) -> Job:
    """A classifier of spots, trained here, real images of another seed, and a generator's run."""
    size, folder = SIZES[request.param], tmp_path_factory.mktemp(request.param)
    (folder / "net.py").write_text(FACTORY)
    (folder / "own.py").write_text(OWN)
    scope: dict[str, Any] = {}
    exec(FACTORY, scope)
    torch.manual_seed(0)
    model: nn.Module = scope["net"]()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(60):
        pixels, labels = spots(size, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(normalised(pixels)), labels).backward()
        optimizer.step()
    save_file(model.state_dict(), folder / "teacher.safetensors")
    pixels, labels = spots(size, 1000)
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        path = folder / "val" / str(label) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    with torch.no_grad():
        top1 = 100 * float((model.eval()(normalised(pixels)).argmax(1) == labels).float().mean())
    assert top1 > 90, "the teacher of the tests has learned nothing"
    made = Job(folder, size, pixels, labels, top1)
    trained = gen("train", *made.flags, *TINY, "--report", "--out", made.run)
    assert trained.code == 0, trained.err
    return made


@pytest.fixture(scope="module")
def tuned(job: Job, finetune: Cli) -> dict[str, Any]:
    """The result of a fine-tuning with crops and flips."""
    flags = ["--bits", "w8a8", "--epochs", 2, "--steps-per-epoch", 0, "--batch-size", 32, "--augment", "crop-flip"]
    return done(
        finetune(
            "--shards",
            job.run,
            *flags,
            "--report",
            "--arch",
            f"{job.folder / 'net.py'}:net",
            "--val",
            job.folder / "val",
            "--json",
        )
    )


def test_the_set_says_its_shape_and_holds_it(job: Job, finetune: Cli, tmp_path: Path) -> None:
    height, width = job.size
    assert yaml.safe_load((job.run / "config.yaml").read_text())["teacher"]["input_size"] == f"{height}x{width}"
    manifest = json.loads((job.run / "shards" / "manifest.json").read_text())
    assert manifest["format"] == "clusterq-shards/2"
    assert manifest["teacher"]["spec"]["size"] == f"{height}x{width}"
    shards = cq.ShardSet.open(job.run)
    assert shards.split("train").read(0)[0].shape == (height, width, 1)
    assert next(iter(shards.as_webdataset("train")))["png"].shape == (1, height, width)
    assert finetune("shards", "verify", job.run, *job.flags[:4]).code == 0
    assert f"1 x {height} x {width}" in finetune("shards", "info", job.run).out
    assert finetune("shards", "preview", job.run, "--out", tmp_path / "p.png", "--per-class", 3).code == 0
    # The longer side has 64 pixels, enlarged by 2; a label's column of 120; gaps of 2.
    assert Image.open(tmp_path / "p.png").size == (120 + 3 * (2 * width + 2) + 2, 8 * (2 * height + 2) + 2)
    grid = next((job.run / "samples").glob("*.png"))
    assert Image.open(grid).size == (10 * (width + 2) + 2, 8 * (height + 2) + 2)
    # An earlier version knows the first format alone.
    manifest["format"] = "clusterq-shards/1"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    refused = finetune("shards", "info", tmp_path)
    assert (refused.code, f"these have {height}x{width} pixels" in refused.err) == (2, True)


def test_images_look_like_the_classes_asked_for(job: Job) -> None:
    split = cq.ShardSet.open(job.run).split("train")
    bright = np.zeros((CLASSES, *job.size))
    for number in range(len(split)):
        pixels, label, _ = split.read(number)
        bright[label] += pixels[:, :, 0].astype(float)
    cells = bright.reshape(CLASSES, job.size[0] // 8, 8, job.size[1] // 8, 8).mean((2, 4)).reshape(CLASSES, CLASSES)
    cells -= cells.mean(0)
    assert (cells.argmax(1) == np.arange(CLASSES)).mean() >= 0.75, "the brightest cell is that of the class"


def test_accuracy_on_real_images(job: Job, tuned: dict[str, Any], finetune: Cli) -> None:
    height, width = job.size
    assert tuned["teacher"]["top1"] == pytest.approx(job.top1)
    assert tuned["student"]["top1"] >= job.top1 - 15
    assert f"resized to cover {height}x{width}" in tuned["preprocessing"]
    student = ["--student", tuned_folder(job)]
    own = done(finetune("evaluate", *student, "--arch", job.flags[1], "--val", f"{job.folder / 'own.py'}:images", "--json"))
    assert own["student"]["top1"] == tuned["student"]["top1"]
    squeezed = done(
        finetune("evaluate", *student, "--arch", job.flags[1], "--val", job.folder / "val", "--crop-pct", "off", "--json")
    )
    assert squeezed["student"]["top1"] == tuned["student"]["top1"]
    assert f"whole image at {height}x{width}" in squeezed["preprocessing"]


def tuned_folder(job: Job) -> Path:
    return job.run / "finetune-w8a8"


def test_exported_files(job: Job, tuned: dict[str, Any], finetune: Cli) -> None:
    height, width = job.size
    out = job.folder / "m.onnx"
    arch = ["--arch", job.flags[1]]
    made = done(finetune("export", "--student", tuned_folder(job), *arch, "--out", out, "--json"))
    assert made["description"]["input"]["size"] == f"{height}x{width}"
    session = onnxruntime.InferenceSession(out.read_bytes())
    assert session.get_inputs()[0].shape[1:] == [1, height, width]
    (logits,) = session.run(None, {session.get_inputs()[0].name: normalised(job.pixels).numpy()})
    top1 = 100 * float((torch.from_numpy(logits).argmax(1) == job.labels).float().mean())
    assert top1 == pytest.approx(tuned["student"]["top1"], abs=1.1)
    read = done(finetune("evaluate", "--onnx", out, "--val", job.folder / "val", "--json"))
    assert read["onnx"]["top1"] == pytest.approx(top1)
    about = OnnxModel(out.read_bytes()).description.input
    assert (about.height, about.width) == job.size
    graph = onnx.load(out)
    values = {entry.key: entry.value for entry in graph.metadata_props}
    turned = json.dumps({**json.loads(values["input"]), "size": f"{width}x{height}"})
    onnx.helper.set_model_props(graph, {**values, "input": turned})
    with pytest.raises(cq.ClusterqError, match=f"takes images of .* and says .'batch', 1, {width}, {height}."):
        OnnxModel(graph.SerializeToString())
    student, spec = cq.load_student(tuned_folder(job), arch=job.flags[1])
    assert (spec.height, spec.width) == job.size
    torch.testing.assert_close(torch.from_numpy(logits), student(normalised(job.pixels)), atol=0.5, rtol=0.1)
    if job.size == SIZES["wide"]:  # torch.export takes its time
        program = finetune(
            "export", "--student", tuned_folder(job), *arch, "--format", "pt2", "--out", job.folder / "m.pt2", "--json"
        )
        assert done(program)["agreement_with_student"] == 100
        loaded = torch.export.load(job.folder / "m.pt2").module()
        torch.testing.assert_close(loaded(normalised(job.pixels)), student(normalised(job.pixels)), atol=1e-3, rtol=1e-3)


def test_reports_figures_and_quality(job: Job, tuned: dict[str, Any], finetune: Cli, gen: Cli) -> None:
    assert (job.run / "report.html").is_file()
    assert (tuned_folder(job) / "report.html").is_file()
    quality = job.folder / "quality.html"
    done_ = finetune("shards", "quality", job.run, *job.flags[:4], "--real", job.folder / "val", "--out", quality)
    assert done_.code == 0, done_.err
    assert quality.is_file()
    drawn = finetune("figures", "grid", job.run, "--out", job.folder / "grid.png", "--classes", "0-3")
    assert drawn.code == 0, drawn.err
    plan = gen("train", *job.flags, "--dry-run", "--out", job.folder / "new")
    assert f"image (1, {job.size[0]}, {job.size[1]})" in plan.out


def test_a_run_goes_on_and_gives_its_images_again(job: Job, gen: Cli, tmp_path: Path) -> None:
    resumed = gen("train", "--resume", "--out", job.run)
    assert resumed.code == 0, resumed.err
    assert gen("train", "--resume", "--out", job.run, "--input-size", "x".join(map(str, job.size[::-1]))).code == 2
    again = gen("emit", "--run", job.run, "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert cq.ShardSet.open(tmp_path / "again").manifest.digest == cq.ShardSet.open(job.run).manifest.digest


def test_a_bank_of_images(job: Job, gen: Cli) -> None:
    flags = ["--method", "intraq", "--bank-steps", 6, "--bank-crop", 1, "--batch-size", 16, "--per-class", 2]
    made = gen("train", *job.flags, *flags, "--heldout-per-class", 0, "--keep-misclassified", "--out", job.folder / "bank")
    assert made.code == 0, made.err
    split = cq.ShardSet.open(job.folder / "bank").split("train")
    assert split.read(0)[0].shape == (*job.size, 1)


def test_one_s_own_images(job: Job, tmp_path: Path) -> None:
    teacher = cq.load_teacher(
        job.flags[1], job.flags[3], input_size=job.size, in_channels=1, num_classes=8, mean=(0.5,), std=(0.5,)
    )
    with cq.ShardWriter(tmp_path / "own", teacher) as writer:
        writer.add(job.pixels)
        with pytest.raises(cq.ClusterqError, match=rf"expected \(N, 1, {job.size[0]}, {job.size[1]}\)"):
            writer.add(job.pixels.transpose(2, 3))
    split = cq.ShardSet.open(tmp_path / "own").split("train")
    assert all((split.read(n)[0][:, :, 0] == job.pixels[n, 0].numpy()).all() for n in range(len(split)))


def test_sets_of_other_shapes_are_not_merged(job: Job, finetune: Cli, tmp_path: Path) -> None:
    # The same weights take the turned image: the digest is the same, the size is not.
    turned = cq.load_teacher(
        job.flags[1], job.flags[3], input_size=job.size[::-1], in_channels=1, num_classes=8, mean=(0.5,), std=(0.5,)
    )
    with cq.ShardWriter(tmp_path / "turned", turned) as writer:
        writer.add(job.pixels.transpose(2, 3))
    refused = finetune("shards", "merge", job.run, tmp_path / "turned", "--out", tmp_path / "both")
    assert refused.code == 2
    assert f"has size {job.size[1]}x{job.size[0]}" in refused.err
    assert f"{job.size[0]}x{job.size[1]}" in refused.err


@pytest.mark.parametrize("wrong", ["16x", "x16", "16x32x3", "16*32", "0x8", "16x5000"])
def test_a_size_that_is_none(wrong: str, gen: Cli) -> None:
    refused = gen("train", "--arch", "resnet20_cifar10", "--input-size", wrong, "--out", "nowhere")
    assert refused.code == 2
    assert refused.err.count("\n") <= 2
    assert "--input-size: " in refused.err
    assert wrong in refused.err
    assert not Path("nowhere").exists()
