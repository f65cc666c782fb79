"""report.html through both command lines: what it says of each kind of run."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np

from tests.conftest import FACTORY, Cli, DigitsTeacher
from tests.e2e.page import Page


def test_a_generators_run(digits_run: Path) -> None:
    page = Page(digits_run / "report.html")
    manifest = json.loads((digits_run / "shards" / "manifest.json").read_text())
    assert "clusterq made 120 training and" in page.text
    assert "without one real image" in page.text
    assert page.images == 10, "a strip for each class"
    assert {"trust", "images", "learning", "features", "emission", "layers", "again", "settings", "origins"} <= page.ids
    for shown in (
        "Gradient norms",
        "Drift of class centroids",
        "Scatter of classes",
        "warm-up ends",
        "student agrees with teacher",
    ):
        assert shown in page.text, shown
    assert manifest["digest"] in page.text
    assert manifest["teacher"]["digest"] in page.text
    assert "clusterq-gen train --config config.yaml --out ../again" in page.text
    assert "alpha_fda" in page.text
    analysis = json.loads((digits_run / "analysis.json").read_text())
    assert [row["layer"] for row in analysis["batchnorm"]] == ["1", "4", "7", "10", "13"]
    assert all(row["bits"] == 4 for row in analysis["weights"])


def test_drift_of_each_layer_and_older_runs_without_it(digits_run: Path, gen: Cli, tmp_path: Path) -> None:
    records = [json.loads(line) for line in (digits_run / "metrics.jsonl").read_text().splitlines()]
    drifts = {
        key: [entry[key] for entry in records if key in entry]
        for record in records
        for key in record
        if key.startswith("drift/")
    }
    assert list(drifts) == ["drift/7", "drift/10", "drift/13"], "the deep half of five BatchNorm layers"
    assert all(len(values) == 5 and values[-1] > 0 for values in drifts.values()), "every 25th of 120 steps after warm-up"
    page = Page(digits_run / "report.html")
    assert "Drift of class centroids by layer" in page.text
    assert "One axis for all, from zero." in page.text
    older = tmp_path / "older"
    shutil.copytree(digits_run, older)
    kept = [{key: value for key, value in record.items() if not key.startswith("drift/")} for record in records]
    (older / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    assert gen("report", older).code == 0
    text = Page(older / "report.html").text
    assert "Drift of class centroids" in text
    assert "by layer" not in text.partition("Drift of class centroids")[2].partition("Learning rate")[0]


def test_a_fine_tuned_student(tuned: Path) -> None:
    page = Page(tuned / "report.html")
    result = json.loads((tuned / "result.json").read_text())
    student, teacher = result["student"], result["teacher"]
    assert f"top-1 {student['top1']:.2f} % where the teacher has {teacher['top1']:.2f} %" in page.text
    low, high = student["top1_interval"]
    assert f"{student['top1']:.2f} % ({low:.2f} to {high:.2f})" in page.text
    assert {"accuracy", "classes", "learning", "reconstruction", "layers", "images", "features"} <= page.ids
    with np.load(tuned / "predictions.npz") as predictions:
        named, labels, right = predictions["student"], predictions["label"], predictions["student"] == predictions["label"]
        apart = 100 * ((predictions["teacher"] == labels).mean() - right.mean())
    assert f"Below the float teacher, points {apart:.2f} (" in page.text, "paired by image"
    for label in range(10):
        total, hits = int((labels == label).sum()), int(right[labels == label].sum())
        cell = f" {label} named {label}: {hits} of {total} ({100 * hits / total:.1f} %)"
        assert cell in page.text, "the heat map counts"
    assert f"{int((named[labels == 8] == 1).sum())}" in page.text
    assert "Error of each block before and after" in page.text
    assert "Teacher and student on held-out images" in page.text
    shares = "student agrees with teacher, student names the stored label, teacher names the stored label"
    assert page.text.count(shares) == 2, "in each step, and on held-out images after each epoch"
    last = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["heldout/teacher_accuracy"] == 1, "of images that contradict it none is in the set"
    # Ten images of its own, and 540 real ones.
    assert last["heldout/student_accuracy"] == last["heldout/agreement"] >= 0.9
    assert right.mean() > 0.9
    sites = json.loads((tuned / "analysis.json").read_text())["activations"]
    assert page.text.count("the grid covers:") == page.text.count("largest value seen:") == len(sites)
    assert student["sha256"] in page.text
    assert "clusterq-finetune reproduce result.json --out ../reproduced" in page.text
    assert "One run of one seed" in page.text


def test_more_images_are_on_the_page_too(digits_run: Path, gen: Cli, tmp_path: Path) -> None:
    run = tmp_path / "out"
    shutil.copytree(digits_run, run)
    assert gen("emit", "--run", run, "--arch", FACTORY, "--per-class", 14).code == 0
    page = Page(run / "report.html")
    assert "clusterq made 140 training and" in page.text
    assert "Scatter of classes" in page.text, "measured on the new set"


def test_without_real_images_nothing_is_said_of_accuracy(digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    out = tmp_path / "blind"
    assert (
        finetune(
            "--shards",
            digits_run,
            "--bits",
            "w4a4",
            "--epochs",
            1,
            "--steps-per-epoch",
            0,
            "--batch-size",
            32,
            "--report",
            "--out",
            out,
        ).code
        == 0
    )
    page = Page(out / "report.html")
    assert "no real image was looked at, so its accuracy is unknown" in page.text
    assert not {"accuracy", "classes", "reconstruction"} & page.ids
    assert {"learning", "layers", "images"} <= page.ids


def test_costs_of_layers_beside_the_page(tuned: Path, finetune: Cli, tmp_path: Path) -> None:
    page = Page(tuned / "report.html")
    rows = list(csv.DictReader((tuned / "layers.csv").open()))
    analysis = json.loads((tuned / "analysis.json").read_text())
    assert [row["layer"] for row in rows] == [row["layer"] for row in analysis["outputs"]]
    assert [row["number"] for row in rows] == [str(n) for n in range(1, len(rows) + 1)]
    # The demo's first layer: 3x3 on one channel, 8x8 images; its last one is linear.
    first, last = rows[0], rows[-1]
    assert int(first["multiply_adds"]) == 64 * int(first["weights"])
    assert last["kind"] == "Linear"
    assert last["multiply_adds"] == last["weights"]
    for row in rows:
        assert row["weight_bits"] == "3"
        assert row["input_bits"] == ("8" if row is first else "3"), "images come in eight bits"
        assert int(row["weight_bytes"]) == -(-int(row["weights"]) * 3 // 8)
        assert f"{row['number']} {row['layer']} {int(row['weights']):,}" in page.text
    out = tmp_path / "page.html"
    assert finetune("report", tuned, "--out", out).code == 0
    assert (tmp_path / "page-layers.csv").read_bytes() == (tuned / "layers.csv").read_bytes()
    assert not (tmp_path / "layers.csv").exists()


def test_a_bank_of_images(digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path) -> None:
    flags = ["--method", "dsg", "--preset", "quick", "--bank-steps", 3, "--per-class", 4, "--batch-size", 20]
    assert gen("train", *digits_teacher.flags, *flags, "--report", "--out", tmp_path / "bank").code == 0
    page = Page(tmp_path / "bank" / "report.html")
    assert "bns, first step" in page.text
    assert "In-loop student" not in page.text
