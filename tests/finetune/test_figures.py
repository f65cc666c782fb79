"""`clusterq-finetune figures`: what the files hold, against plain computations; that the same input gives the same bytes."""

import base64
import csv
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clusterq_common.errors import ClusterqError
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune.figures.command import class_names
from clusterq_finetune.figures.measure import chosen_layers, short_layer
from clusterq_finetune.figures.spread import nearest_own_class, within_class_distances, within_class_spread
from tests.common.shard_samples import edit_manifest, write_set
from tests.conftest import FACTORY, Cli, DigitsTeacher, Outcome

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
Array = np.ndarray[Any, np.dtype[np.float64]]


def parsed(path: Path) -> ET.Element:
    return ET.fromstring(path.read_text(encoding="utf-8"))


def words(path: Path) -> str:
    """All text of an SVG, as a reader would search it."""
    return " ".join(" ".join("".join(text.itertext()) for text in parsed(path).iter(f"{SVG}text")).split())


def marks(path: Path, gid: str) -> int:
    """How many marks a named part of an SVG has."""
    (group,) = [element for element in parsed(path).iter(f"{SVG}g") if element.get("id") == gid]
    return len(list(group.iter(f"{SVG}use")))


def numbers(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def done(outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome.out
    for word in words:
        assert word in outcome.err


def first_images(run: Path, per_class: int) -> tuple[torch.Tensor, Array]:
    """The first training images of each class, class after class, normalised as the digits' teacher takes them; plainly."""
    reader = ShardSet.open(run).split("train")
    by_class: dict[int, list[Array]] = {label: [] for label in range(10)}
    for number in range(len(reader)):
        pixels, label, _ = reader.read(number)
        by_class[label].append(pixels)
    pixels = np.stack([image for own in by_class.values() for image in own[:per_class]])
    labels = np.array([label for label, own in by_class.items() for _ in own[:per_class]])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5, labels


def inputs_of(teacher: DigitsTeacher, layer: str, images: torch.Tensor) -> Array:
    """Channel means at a BatchNorm layer's input, in running standard deviations; by a hook of our own."""
    sizes = {"input_size": 8, "in_channels": 1, "num_classes": 10, "mean": (0.5,), "std": (0.5,)}
    model = load_teacher(TeacherConfig.validated({"arch": FACTORY, "weights": str(teacher.weights), **sizes})).model
    norm, seen = model.get_submodule(layer), []
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].double().mean((2, 3))))
    with torch.no_grad():
        model(images)
    return ((seen[0] - norm.running_mean) / torch.sqrt(norm.running_var.double() + norm.eps)).numpy()


def test_features_show_every_image_once_in_each_layer(
    finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path
) -> None:
    out = tmp_path / "made" / "features"
    flags = ["--val", digits_teacher.val, "--per-class", 6, "--classes", "0-3,7", "--perplexity", 8, "--layers", "4,7"]
    command = ["figures", "features", digits_run, digits_run, "--names", "one,other", *flags, "--json"]
    result = done(finetune(*command, "--format", "png,svg,pdf,csv", "--out", out))
    assert result["images"] == {"real images": 30, "one": 30, "other": 30}
    assert result["classes"] == [0, 1, 2, 3, 7]
    assert len(result["layers"]) == 2
    labels = words(out.with_suffix(".svg"))
    for expected in (
        "t-SNE",
        "perplexity 8, started from PCA",
        "real images, n = 30",
        "one, n = 30",
        "4 (2 of 5)",
        "7 (3 of 5)",
        "chance: 20 %",
    ):
        assert expected in labels
    assert [marks(out.with_suffix(".svg"), f"points-{row}-{column}") for row in (1, 2) for column in (1, 2, 3)] == [30] * 6
    rows = numbers(out.with_suffix(".csv"))
    assert len(rows) == 2 * 90
    assert {row["layer"] for row in rows} == set(result["layers"])
    assert [row["class"] for row in rows[:30]] == [str(label) for label in (0, 1, 2, 3, 7) for _ in range(6)]
    # Other bytes would mean that a date, a random name or a thread's turn had got in.
    again = done(finetune(*command, "--format", "png,svg,pdf,csv", "--out", tmp_path / "again"))
    for kind, path in result["files"].items():
        assert Path(path).read_bytes() == Path(again["files"][kind]).read_bytes(), kind
    tables = [(tmp_path / "made" / "features.csv").read_text()]
    for seed in (1, 2):
        done(finetune(*command, "--seed", seed, "--out", tmp_path / "seed.csv"))
        tables.append((tmp_path / "seed.csv").read_text())
    assert len(set(tables)) == 3, "other starts, other pictures"


def test_pca_is_that_of_the_channel_means(
    finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path
) -> None:
    command = ["figures", "features", digits_run, "--projection", "pca", "--per-class", 5, "--format", "svg,csv"]
    result = done(finetune(*command, "--out", tmp_path / "pca", "--json"))
    images, labels = first_images(digits_run, 5)
    for layer in result["layers"]:
        rows = [row for row in numbers(tmp_path / "pca.csv") if row["layer"] == layer]
        assert [int(row["class"]) for row in rows] == labels.tolist()
        values = inputs_of(digits_teacher, layer, images)
        left, sizes, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
        expected = left[:, :2] * sizes[:2]
        projected = np.array([[float(row["x"]), float(row["y"])] for row in rows])
        signs = np.sign((projected * expected).sum(0))
        np.testing.assert_allclose(projected * signs, expected, atol=2e-4)
        share = np.square(sizes) / np.square(sizes).sum()
        assert f"PC 1 ({100 * share[0]:.0f} %)" in words(tmp_path / "pca.svg")
    own = nearest_own_class(values, labels, values, labels)
    assert f"nearest to own class: {own:.0f} %" in words(tmp_path / "pca.svg")


def test_nearness_and_spread_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(23, 4)), np.array([0, 0, 0, 2, 2, 2, 2, 5] * 2 + [5] * 7)
    others, other_labels = rng.normal(size=(11, 4)), np.array([0, 2, 5, 0, 2, 5, 0, 2, 5, 5, 5])

    def slow(a: Array, a_labels: Array, b: Array, b_labels: Array) -> float:
        hits = 0
        for place, (value, label) in enumerate(zip(a, a_labels, strict=True)):
            distances = {}
            for digit in (0, 2, 5):
                keep = (b_labels == digit) & ~((a is b) & (np.arange(len(b)) == place))
                distances[digit] = np.linalg.norm(value - b[keep].mean(0))
            hits += min(distances, key=lambda key: distances[key]) == label
        return 100 * hits / len(a)

    assert nearest_own_class(values, labels, values, labels) == pytest.approx(slow(values, labels, values, labels))
    assert nearest_own_class(values, labels, others, other_labels) == pytest.approx(slow(values, labels, others, other_labels))
    # The only image of a class has no other to be near to.
    alone = np.array([[0.0], [1.0], [9.0]])
    assert nearest_own_class(alone, np.array([0, 0, 1]), alone, np.array([0, 0, 1])) == 100
    pairs = [np.sqrt(np.mean((values[i] - values[j]) ** 2)) for i in range(23) for j in range(i) if labels[i] == labels[j]]
    assert sorted(within_class_distances(values, labels)) == pytest.approx(sorted(pairs))
    expected = [np.sqrt(np.mean([np.var(column, ddof=1) for column in values[labels == digit].T])) for digit in (0, 2, 5)]
    assert within_class_spread(values, labels) == pytest.approx(expected)


def test_layers_by_name_number_or_by_themselves() -> None:
    order = [f"features.stage{n}.bn" for n in range(1, 20)]
    assert chosen_layers(order, None) == [order[9], order[13], order[18]]
    assert chosen_layers(order[:1], None) == order[:1]
    assert chosen_layers(order, ("19", "features.stage2.bn")) == [order[1], order[18]]
    with pytest.raises(ClusterqError, match="found 'bn', expected names or numbers of this teacher's 19"):
        chosen_layers(order, ("bn",))
    assert short_layer(order[2], order) == "stage3.bn (3 of 19)"
    assert short_layer("bn", ["bn", "features.bn"]) == "bn (1 of 2)"


def test_diversity_of_runs_side_by_side(finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    command = ["figures", "diversity", digits_run, digits_run, "--names", "with DE,without DE", "--val", digits_teacher.val]
    command += ["--per-class", 8, "--shown-classes", "3", "--shown", 4, "--format", "svg,csv"]
    result = done(finetune(*command, "--out", tmp_path / "diversity", "--json"))
    rows = numbers(tmp_path / "diversity.csv")
    by_place = {(row["what"], row["layer"], row["source"]): row for row in rows}
    spread, distance = "within-class spread", "within-class distance"
    assert sum(row["what"] == spread for row in rows) == 5 * 3, "every layer of each source"
    assert sum(row["what"] == distance for row in rows) == (len(result["layers"]) + 1) * 3, "the chosen ones, and pixels"
    images, labels = first_images(digits_run, 8)
    layer = result["layers"][-1]
    values = inputs_of(digits_teacher, layer, images)
    for what, expected in (
        ((spread, layer), within_class_spread(values, labels)),
        ((distance, layer), within_class_distances(values, labels)),
        ((distance, "pixels"), within_class_distances(images.flatten(1).double().numpy() * 127.5, labels)),
    ):
        assert float(by_place[(*what, "with DE")]["median"]) == pytest.approx(np.median(expected), rel=1e-4)
        # The very same images under another name.
        left, right = ({**by_place[(*what, name)], "source": ""} for name in ("with DE", "without DE"))
        assert left == right
    texts = words(tmp_path / "diversity.svg")
    assert "class 3" in texts
    assert "class 0" not in texts
    assert "the first 4 images of class 3" in texts
    assert marks(tmp_path / "diversity.svg", "spread-2") == 5
    again = done(finetune(*command, "--out", tmp_path / "again", "--json"))
    assert Path(again["files"]["svg"]).read_bytes() == (tmp_path / "diversity.svg").read_bytes()


def test_a_grid_holds_the_stored_pixels(finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    command = [
        "figures",
        "grid",
        digits_run,
        "--names",
        "mine",
        "--val",
        digits_teacher.val,
        "--classes",
        "1,4,9",
        "--per-class",
        2,
    ]
    result = done(finetune(*command, "--out", tmp_path / "grid.svg", "--json"))
    assert list(tmp_path.iterdir()) == [tmp_path / "grid.svg"]
    assert result["images"] == {"real images": 6, "mine": 6}
    assert "mine" in words(tmp_path / "grid.svg")
    images, labels = first_images(digits_run, 2)
    (drawn,) = [element for element in parsed(tmp_path / "grid.svg").iter(f"{SVG}image") if element.get("id") == "row-2"]
    data = base64.b64decode(str(drawn.get(HREF)).removeprefix("data:image/png;base64,"))
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(np.float64)
    assert shown.shape == (2 * 8 + 1, 3 * 8 + 2), "pixel by pixel, with gaps of one"
    for row in range(2):
        for column, label in enumerate((1, 4, 9)):
            expected = images[np.flatnonzero(labels == label)[row], 0].numpy() * 127.5 + 127.5
            np.testing.assert_allclose(shown[9 * row : 9 * row + 8, 9 * column : 9 * column + 8], expected, atol=1e-3)


def test_what_cannot_be_drawn_is_refused(
    finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "x"]
    features = ["figures", "features", digits_run, *out, "--per-class", 2]
    refused(finetune(*features, "--perplexity", 20), "--perplexity: found 20 for 20 images")
    refused(
        finetune(*features, "--layers", "2"), "--layers: found '2', expected names of this", "5 BatchNorm layers (1: 1, 2: 4, "
    )
    refused(finetune(*features, "--names", "a,b"), "--names: found 2 names for 1 runs")
    refused(finetune(*features, "--names", "real images"), "--names", "expected names that differ")
    refused(finetune(*features, "--classes", "3,12"), "--classes: class 12 is none of 10")
    refused(finetune(*features, "--format", "png,jpeg"), "--format", "png, svg, pdf, csv")
    refused(finetune(*features, "--format", "png", "--out", tmp_path / "x.svg"), "--out", "has an ending")
    refused(finetune(*features, "--format", "svg", "--dpi", 300), "--dpi: no png is written, only svg")
    refused(finetune(*features, "--projection", "pca", "--seed", 1), "--seed: --projection pca has no such choice")
    refused(finetune(*features, "--crop-pct", 0.9), "--crop-pct", "there is no --val")
    refused(finetune("figures", "features", digits_run, digits_run, *out), "--names: the runs would be called out, out")
    refused(finetune("figures", "features", tmp_path, *out), "holds no manifest.json")
    refused(finetune("figures", "grid", digits_run, *out, "--format", "csv"), "--format: csv", "pictures alone")
    refused(
        finetune("figures", "diversity", digits_run, *out, "--classes", "1,2", "--shown-classes", "3"),
        "--shown-classes: found 3",
    )
    refused(finetune(*features, "--val", tmp_path), "--val")
    assert list(tmp_path.iterdir()) == []


def test_names_of_classes_are_cut_to_a_legends_width(tmp_path: Path) -> None:
    """A manifest may hold megabytes for one, and matplotlib would set them all."""
    write_set(tmp_path)
    edit_manifest(tmp_path, lambda values: values.update(class_names=["a\n\x1b[31m" + "b" * 1_000_000, "cat", "dog"]))
    names = class_names([ShardSet.open(tmp_path)], [0, 1])
    assert names[1] == "1 cat"
    assert names[0] == f"0 a \\x1b[31m{'b' * 27}..."


@pytest.mark.parametrize("package", ["matplotlib", "sklearn"])
def test_a_missing_extra_is_named(
    finetune: Cli, digits_run: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refused(
        finetune("figures", "grid", digits_run, "--out", tmp_path / "x"),
        package,
        "pip install '.[figures]' in clusterq's checkout",
    )


def test_help_needs_neither_torch_nor_matplotlib() -> None:
    program = "import sys; import clusterq_finetune.cli.main; print([n for n in ('torch', 'matplotlib', 'sklearn') if n in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
