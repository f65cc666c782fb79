"""`clusterq-finetune figures sensitivity`, on tables that tools/analyses.py itself has written."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools.compare import paired

from clusterq_finetune.figures.table import read_curves
from tests.conftest import ROOT, Cli
from tests.finetune.test_figures import done, marks, numbers, refused, words

IMAGES = 400


@pytest.fixture(scope="module")
def analyses() -> Any:
    """tools/analyses.py as a module; it stands beside the packages it imports."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import analyses
        import compare.runs
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return analyses, compare.runs


def made(analyses: Any, out: Path, analysis: str, bits: list[str], seeds: list[int]) -> dict[str, list[float]]:
    """Write an analysis' folder by the tool's own code, from made-up predictions; returns top-1 by seed of each set at the first bits."""
    tool, runs = analyses
    sets, folder, rng = tool.ANALYSES[analysis], out / analysis, np.random.default_rng(len(analysis))
    settings = [runs.Setting(name, b, "all", "fast") for b in bits for name in sets]
    comparison = runs.Comparison(out=folder, val=out, teacher=[], sets=sets, seeds=seeds)
    label = rng.integers(10, size=IMAGES)
    top1: dict[str, list[float]] = {}
    for seed in seeds:
        for name in sets:
            (folder / "sets" / f"{name}-{seed}" / "shards").mkdir(parents=True)
            (folder / "sets" / f"{name}-{seed}" / "shards" / "manifest.json").write_text("{}")
        for place, setting in enumerate(settings):
            student = folder / "students" / f"{setting.name}-{setting.bits}-all-fast-{seed}"
            student.mkdir(parents=True)
            wrong = rng.random(IMAGES) < 0.1 + 0.01 * place
            predicted = np.where(wrong, (label + 1) % 10, label)
            named = {"teacher": label, "calibrated": predicted, "student": predicted}
            np.savez(student / "predictions.npz", name=np.arange(IMAGES).astype(str), label=label, **named)
            accuracies = {"top1": 100 * float((predicted == label).mean())}
            result = {"teacher": {}, "shards": {"training_images": 5120}, "student": accuracies, "settings": {}, "threads": 1}
            (student / "result.json").write_text(json.dumps(result))
            if setting.bits == bits[0]:
                top1.setdefault(setting.name, []).append(accuracies["top1"])
    comparison.table(settings)
    return top1


def test_numbers_are_those_of_the_table(finetune: Cli, analyses: Any, tmp_path: Path) -> None:
    top1 = made(analyses, tmp_path, "ema-rate", ["w4a4", "w3a3"], [0, 1, 2])
    out = tmp_path / "figure"
    command = ["figures", "sensitivity", tmp_path / "ema-rate", "--format", "png,svg,csv", "--json"]
    result = done(finetune(*command, "--out", out))
    assert [(curve["analysis"], curve["kind"]) for curve in result["curves"]] == [
        ("ema-rate", "w4a4, all, fast"),
        ("ema-rate", "w3a3, all, fast"),
    ]
    rows = numbers(out.with_suffix(".csv"))
    first = [row for row in rows if row["kind"].startswith("w4a4")]
    assert [row["value"] for row in first] == ["0", "0.1", "0.2", "0.4", "0.6", "0.8", "1"], "in order of the value"
    for row in first:
        own = top1[row["set"]]
        assert float(row["top-1"]) == pytest.approx(np.mean(own), abs=0.006)
        assert float(row["std"]) == pytest.approx(np.std(own, ddof=1), abs=0.006)
        if row["set"] == "ema-rate-0.2":
            assert row["above the first"] == ""
        else:
            gain = np.mean(own) - np.mean(top1["ema-rate-0.2"])
            assert float(row["above the first"]) == pytest.approx(gain, abs=0.006)
            assert float(row["low"]) < float(row["above the first"]) < float(row["high"])
    svg = out.with_suffix(".svg")
    labels = words(svg)
    for expected in (
        "rate b of the centroids' update (--ema-rate)",
        "teacher 100.00",
        "mean over 3 seeds",
        "white diamond: ema-rate-0.2",
        "dashes: single seeds",
        "ema-rate: w4a4, all, fast",
    ):
        assert expected in labels
    assert (marks(svg, "top1-1"), marks(svg, "gain-2")) == (7, 6)
    again = done(finetune(*command, "--out", tmp_path / "again"))
    for kind, path in result["files"].items():
        assert Path(path).read_bytes() == Path(again["files"][kind]).read_bytes(), kind


def test_paired_intervals_are_turned_round(analyses: Any, tmp_path: Path) -> None:
    made(analyses, tmp_path, "diversity", ["w4a4"], [0, 1])
    (curve,) = read_curves(tmp_path / "diversity" / "table.json")
    repeats = {
        row.name: paired.Repeats.read(
            [tmp_path / "diversity" / "students" / f"{row.name}-w4a4-all-fast-{seed}" / "predictions.npz" for seed in (0, 1)]
        )
        for row in curve.rows
    }
    for row in curve.rows:
        expected = paired.paired(repeats[row.name].right["student"], repeats[curve.first].right["student"])
        if row.name != curve.first:
            assert row.gain == pytest.approx((expected.mean, expected.low, expected.high), abs=0.006)
        assert len(row.single) == 2


def test_wide_values_and_words_have_axes_of_their_own(finetune: Cli, analyses: Any, tmp_path: Path) -> None:
    made(analyses, tmp_path, "images", ["w4a4"], [0])
    made(analyses, tmp_path, "de-and-ema", ["w4a4"], [0])
    folders = [tmp_path / "images", tmp_path / "de-and-ema"]
    done(finetune("figures", "sensitivity", *folders, "--out", tmp_path / "both.svg", "--json"))
    labels = words(tmp_path / "both.svg")
    assert "training images of each class (--per-class), log scale" in labels
    for name in ("full", "without-ema", "without-de", "without-both", "gdfq"):
        assert f" {name} " in labels
    assert "mean over 1 seed of generator" in labels
    assert "standard deviation" not in labels


def test_single_seeds_are_shown_only_where_they_are_those_of_the_table(analyses: Any, tmp_path: Path) -> None:
    made(analyses, tmp_path, "batch-classes", ["w4a4"], [0, 1])
    folder = tmp_path / "batch-classes"
    result = folder / "students" / "classes-per-batch-10-w4a4-all-fast-0" / "result.json"
    changed = json.loads(result.read_text())
    changed["student"]["top1"] += 5
    result.write_text(json.dumps(changed))
    (curve,) = read_curves(folder)
    assert [len(row.single) for row in curve.rows] == [2, 2, 2, 0]
    table = folder / "table.json"
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "table.json").write_bytes(table.read_bytes())
    assert [row.single for row in read_curves(alone)[0].rows] == [()] * 4


def test_what_is_no_analysis_is_refused(finetune: Cli, analyses: Any, tmp_path: Path) -> None:
    made(analyses, tmp_path, "diversity", ["w4a4", "w3a3", "w2a2", "w8a8"], [0])
    out = ["--out", tmp_path / "x.svg"]
    refused(finetune("figures", "sensitivity", tmp_path, *out), "there is no table.json", "name one of diversity in it")
    refused(finetune("figures", "sensitivity", tmp_path / "diversity", *out), "the tables hold 4 curves", "at most 3")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "table.json").write_text('[{"set": "a", "student": "good"}]')
    refused(finetune("figures", "sensitivity", broken, *out), "'good' as student", "run it again")
    (broken / "table.json").write_text("[]")
    refused(finetune("figures", "sensitivity", broken, *out), "has no row")
    assert not (tmp_path / "x.svg").exists()
