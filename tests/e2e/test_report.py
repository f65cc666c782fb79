"""report.html through both command lines: what it says of each kind of run, and that a browser shows it without asking anyone."""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from clusterq_common.report import command
from tests.browser import Browser
from tests.conftest import Cli, DigitsTeacher

# Elements that a browser would fetch or run something for, and the attributes that name it.
FETCHING = {"script", "iframe", "object", "embed", "link", "base", "form", "audio", "video", "source"}
LARGEST = 2_000_000


class Page(HTMLParser):
    """A page's text, its anchors and what it would fetch; fails on anything that runs or leaves the file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.images, self.ids, self.links = "", 0, set[str](), set[str]()
        self.open: list[str] = []
        raw = path.read_text(encoding="utf-8")
        assert raw.startswith("<!doctype html>")
        assert path.stat().st_size < LARGEST
        # Well-formed twice over: as XML, which forgives nothing, and as browsers read it.
        ET.fromstring(raw.partition("\n")[2])
        self.feed(raw)
        self.text = " ".join(self.text.split())
        assert self.links <= self.ids, "contents lead somewhere"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        values = {name: value or "" for name, value in attrs}
        assert tag not in FETCHING
        assert not [name for name in values if name.startswith("on")]
        for name in ("src", "href", "action", "data", "srcset", "xlink:href"):
            if name in values:
                assert values[name].startswith(("data:image/png;base64,", "#")), values[name][:80]
        assert "url(" not in values.get("style", "")
        self.images += tag == "img"
        self.ids |= {values["id"]} if "id" in values else set()
        self.links |= {values["href"][1:]} if "href" in values else set()

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
            assert "prefers-color-scheme:dark" in data
            assert "@media print" in data
            return
        self.text += f" {data}"


@pytest.fixture(scope="module")
def tuned(digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning that was evaluated, with every part of a report."""
    out = tmp_path_factory.mktemp("report") / "tuned"
    flags = ["--recipe", "best", "--reconstruct-steps", 5, "--reconstruct-images", 32, "--epochs", 2, "--batch-size", 32]
    done = finetune("--shards", digits_run, "--bits", "w3a3", *flags, "--val", digits_teacher.val, "--out", out)
    assert done.code == 0, done.err
    assert f"report: {out / 'report.html'}" in done.err
    return out


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
        key: [one[key] for one in records if key in one] for record in records for key in record if key.startswith("drift/")
    }
    assert list(drifts) == ["drift/7", "drift/10", "drift/13"], "the deep half of five BatchNorm layers"
    assert all(len(values) == 5 and values[-1] > 0 for values in drifts.values()), "every 25th of 120 steps after warm-up"
    page = Page(digits_run / "report.html")
    assert "Drift of class centroids by layer" in page.text
    assert "One axis for all, from zero." in page.text
    older = tmp_path / "older"
    shutil.copytree(digits_run, older)
    kept = [{key: value for key, value in one.items() if not key.startswith("drift/")} for one in records]
    (older / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
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
    with np.load(tuned / "predictions.npz") as said:
        named, labels, right = said["student"], said["label"], said["student"] == said["label"]
        apart = 100 * ((said["teacher"] == labels).mean() - right.mean())
    assert f"{apart:.2f} [" in page.text, "paired by image"
    for label in range(10):
        total, hits = int((labels == label).sum()), int(right[labels == label].sum())
        cell = f"{label} {label} named {label} {label}: {hits} of {total} ({100 * hits / total:.1f} %)"
        assert cell in page.text, "the heat map counts"
    assert f"{int((named[labels == 8] == 1).sum())}" in page.text
    assert "Error of each block before and after" in page.text
    assert "Teacher and student on held-out images" in page.text
    shares = "student agrees with teacher, student names the label, teacher names the label"
    assert page.text.count(shares) == 2, "in each step, and on held-out images after each epoch"
    last = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["heldout/teacher_accuracy"] == 1, "of images that contradict it none is in the set"
    assert last["heldout/student_accuracy"] == last["heldout/agreement"] < 1
    sites = json.loads((tuned / "analysis.json").read_text())["activations"]
    assert page.text.count("the grid covers:") == page.text.count("largest value seen:") == len(sites)
    assert student["sha256"] in page.text
    assert "clusterq-finetune reproduce result.json --out ../again" in page.text
    assert "One run of one seed" in page.text


def test_more_images_are_on_the_page_too(digits_run: Path, gen: Cli, tmp_path: Path) -> None:
    run = tmp_path / "out"
    shutil.copytree(digits_run, run)
    assert gen("emit", "--run", run, "--per-class", 14).code == 0
    page = Page(run / "report.html")
    assert "clusterq made 140 training and" in page.text
    assert "Scatter of classes" in page.text, "measured on the new set"


def test_without_real_images_nothing_is_said_of_accuracy(digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    out = tmp_path / "blind"
    assert finetune("--shards", digits_run, "--bits", "w4a4", "--epochs", 1, "--batch-size", 32, "--out", out).code == 0
    page = Page(out / "report.html")
    assert "no real image was looked at, so its accuracy is unknown" in page.text
    assert not {"accuracy", "classes", "reconstruction"} & page.ids
    assert {"learning", "layers", "images"} <= page.ids


def test_it_is_drawn_again_and_measured_again(tuned: Path, finetune: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    before = {name: (run / name).read_bytes() for name in ("report.html", "analysis.json")}
    (run / "report.html").unlink()
    done = finetune("report", run)
    assert (done.code, done.out) == (0, f"report: {run / 'report.html'}\n")
    assert (run / "report.html").read_bytes() == before["report.html"]
    (run / "analysis.json").unlink()
    done = finetune("report", run, "--out", tmp_path / "page.html")
    assert "--analyse measures them" in done.err
    assert "Signal to quantization noise" not in Page(tmp_path / "page.html").text
    assert finetune("report", run, "--analyse").code == 0
    assert (run / "analysis.json").read_bytes() == before["analysis.json"]
    # Figures of another student are not shown as this one's; and that training did harm is said.
    result = json.loads((run / "result.json").read_text())
    result["student"]["epoch"] = -1
    result["student"]["sha256"] = "0" * 64
    (run / "result.json").write_text(json.dumps(result))
    assert finetune("report", run).code == 0
    page = Page(run / "report.html")
    assert "Signal to quantization noise" not in page.text
    assert "training made the student worse" in page.text


def test_a_page_says_where_nothing_lies(tuned: Path, digits_run: Path, finetune: Cli, gen: Cli, tmp_path: Path) -> None:
    """Pages are passed between teams: no folder of this machine is on them, and the commands still work beside the files."""
    run = tmp_path / "secret-project" / "run"
    shutil.copytree(tuned, run)
    words = [
        "/opt/bin/clusterq-finetune",
        "--shards",
        str(digits_run),
        "--val=/home/me/patients/val set",
        "--weights",
        "../w.pth",
    ]
    words += ["--arch", str(run / "net.py:build"), "--out", str(run), "--config", "C:\\Users\\me\\config.yaml"]
    (run / "environment.json").write_text(json.dumps({"command": words}))
    shard = run.parent / "shards"
    shutil.copytree(digits_run / "shards", shard)
    next(shard.glob("*train*.tar")).unlink()
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "shards": str(shard)}))
    assert finetune("report", run).code == 0
    page = Page(run / "report.html")
    for folder in (tmp_path, tuned.parent, digits_run.parent, Path("/home"), Path("/opt")):
        assert str(folder) not in page.text
    assert "Users" not in page.text
    assert "secret-project" not in page.text
    started = f"--shards .../{digits_run.name} '--val=.../val set' --weights ../w.pth --arch net.py:build --out ../run --config .../config.yaml"
    assert f"As it was started: clusterq-finetune {started} Names after .../ stand for what lies outside" in page.text
    assert (
        "On another machine --shards and --weights, and --arch for a file of your own, say where those files are now."
        in page.text
    )
    assert "shards ../shards" in page.text
    assert "weights .../teacher.safetensors" in page.text
    assert "The images cannot be shown. --shards: ../shards/synth-train-000000.tar" in page.text
    for path in (digits_run / "report.html", tuned / "report.html"):
        assert not re.search(r"/(tmp|home|root|work)/", Page(path).text)


def test_the_commands_on_a_page_work(tuned: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    monkeypatch.chdir(run)
    done = finetune("reproduce", "result.json", "--out", "../again", "--no-report")
    assert (done.code, done.out.splitlines()[-1].partition(":")[0]) == (0, "identical")
    assert not (tmp_path / "again" / "report.html").exists()
    dry = finetune("--config", "config.yaml", "--out", "../once-more", "--dry-run")
    assert (dry.code, "120 training images" in dry.out) == (0, True)


def test_no_report(digits_run: Path, digits_teacher: DigitsTeacher, gen: Cli, finetune: Cli, tmp_path: Path) -> None:
    small = ["--epochs", 2, "--steps-per-epoch", 2, "--warmup-epochs", 1, "--width", 8, "--per-class", 2, "--preset", "quick"]
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    done = gen("train", *digits_teacher.flags, *small, "--keep-misclassified", "--no-report", "--out", run)
    assert done.code == 0, done.err
    assert finetune("--shards", digits_run, "--epochs", 0, "--no-report", "--out", tuned).code == 0
    for folder in (run, tuned):
        assert not {"report.html", "analysis.json"} & {path.name for path in folder.iterdir()}
    assert gen("emit", "--run", run, "--per-class", 3).code == 0
    assert not (run / "report.html").exists(), "as the run was made"
    assert gen("emit", "--run", run, "--per-class", 4, "--report").code == 0
    assert (run / "report.html").exists()


def test_unfinished_runs(digits_run: Path, tuned: Path, gen: Cli, finetune: Cli, tmp_path: Path) -> None:
    run = tmp_path / "out"
    run.mkdir()
    shutil.copy(digits_run / "config.yaml", run)
    assert gen("report", run).code == 0
    assert "Not one step is on record yet" in Page(run / "report.html").text
    lines = (digits_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:100]) + lines[100][:20])
    assert gen("report", run).code == 0
    page = Page(run / "report.html")
    assert "The run is not finished: 100 of 240 steps are on record" in page.text
    assert "loss" in page.text
    half = tmp_path / "half"
    shutil.copytree(tuned, half, ignore=shutil.ignore_patterns("result.json", "predictions.npz", "analysis.json"))
    assert finetune("report", half).code == 0
    assert "not finished" in Page(half / "report.html").text
    assert finetune("report", run, "--analyse").code == 2
    shutil.copytree(digits_run / "shards", run / "shards", ignore=shutil.ignore_patterns("*train*.tar"))
    assert gen("report", run).code == 0
    assert "The images cannot be shown. --shards:" in Page(run / "report.html").text


def test_a_bank_of_images(digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path) -> None:
    flags = ["--method", "dsg", "--preset", "quick", "--bank-steps", 3, "--per-class", 4, "--batch-size", 20]
    assert gen("train", *digits_teacher.flags, *flags, "--out", tmp_path / "bank").code == 0
    page = Page(tmp_path / "bank" / "report.html")
    assert "bns, first step" in page.text
    assert "In-loop student" not in page.text


def test_a_comparison(finetune: Cli, tmp_path: Path) -> None:
    row = {"set": "clusterq", "bits": "w4a4", "seeds": 2, "images": 5120, "teacher": "92.02", "calibrated": "87.96 ± 0.07"}
    row |= {"student": "91.17 ± 0.01", "below teacher [95 %]": "0.85 [0.60, 1.10]", "set, CPU min": "10.4"}
    other = row | {"set": "gdfq", "student": "91.00 ± 0.05", "below teacher [95 %]": "1.02 [0.77, 1.27]", "calibrated": ""}
    (tmp_path / "table.json").write_text(json.dumps([row, other]))
    assert finetune("report", tmp_path).code == 0
    page = Page(tmp_path / "report.html")
    for shown in (
        "2 ways to a low-bit student",
        "Highest top-1: clusterq, 91.17 %",
        "Points below the teacher",
        "Rows of 2 runs",
    ):
        assert shown in page.text, shown
    (tmp_path / "table.json").write_text("[]")
    assert finetune("report", tmp_path).code == 0
    assert "The table has no row" in Page(tmp_path / "report.html").text


def test_what_is_no_run_is_refused(gen: Cli, finetune: Cli, tuned: Path, tmp_path: Path) -> None:
    for cli in (gen, finetune):
        for folder, words in ((tmp_path, "holds neither config.yaml nor table.json"), (tmp_path / "none", "is no folder")):
            done = cli("report", folder)
            assert done.code == 2
            assert words in done.err
            assert len(done.err.splitlines()) == 1
    done = finetune("report", tuned, "--out", tmp_path / "none" / "page.html")
    assert (done.code, "--out" in done.err) == (2, True)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert "neither a section generator" in gen("report", tmp_path).err
    for name, content in (
        ("result.json", b"[1"),
        ("metrics.jsonl", b"x\n"),
        ("predictions.npz", b"PK"),
        ("environment.json", b"\xff"),
    ):
        run = tmp_path / name
        shutil.copytree(tuned, run)
        (run / name).write_bytes(content)
        done = finetune("report", run)
        assert done.code == 2, name
        assert name in done.err
        assert len(done.err.splitlines()) == 1


def test_a_hostile_folder_harms_nobody(tuned: Path, finetune: Cli, tmp_path: Path) -> None:
    run, evil = tmp_path / "run", '"><script>alert(1)</script><img src=http://localhost/x onerror=alert(1)>\u202e\x07'
    shutil.copytree(tuned, run)

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"{key}{evil}" if key == "weight_ema" else key: poisoned(one) for key, one in value.items()}
        if isinstance(value, list):
            return [poisoned(one) for one in value]
        return evil if isinstance(value, str) else value

    result = json.loads((run / "result.json").read_text())
    shards, student = result["shards"]["digest"], result["student"]["sha256"]
    result = poisoned(result)
    result["shards"]["digest"], result["student"]["sha256"] = shards, student
    config = yaml.safe_load((run / "config.yaml").read_text())
    config = poisoned(config) | {"shards": config["shards"], evil: {evil: [evil]}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "result.json").write_text(json.dumps(result))
    analysis = poisoned(json.loads((run / "analysis.json").read_text())) | {"shards": shards, "student": student}
    (run / "analysis.json").write_text(json.dumps(analysis))
    (run / "environment.json").write_text(json.dumps({"command": [evil, evil], "versions": {evil: evil}, "commit": evil}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, f"loss/{evil}": 1.0, "loss/ce": "x", "loss/kl": 10**400}) + "\n[]\n7\n")
    with np.load(run / "predictions.npz") as found:
        arrays = dict(found)
    arrays["name"] = np.array([f"{evil.replace('/', '')}/{name}" for name in arrays["name"]])
    arrays["student"] = arrays["student"] - 5
    np.savez(run / "predictions.npz", **arrays)
    assert finetune("report", run).code == 0
    page = Page(run / "report.html")
    assert "alert(1)" in page.text, "it is shown as the text that it is"
    assert "As it was started" not in page.text, "nobody is offered an unknown program to copy"
    (run / "environment.json").write_text(
        json.dumps({"command": ["/somewhere/bin/clusterq-finetune", "--resume", "--out", "a; b"]})
    )
    assert finetune("report", run).code == 0
    assert "As it was started: clusterq-finetune --out 'a; b'" in Page(run / "report.html").text
    # Sections that are something else than what they should be.
    for part in ("student", "teacher", "reconstruction", "shards", "settings"):
        (run / "result.json").write_text(json.dumps({**result, part: [5, None, "x"]}))
        assert finetune("report", run).code == 0, part
        Page(run / "report.html")
    # A few lines of YAML that unfold to more than any memory holds, and JSON nested as deep as it can be read.
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 20)}]\n" for n in range(1, 30))
    deep = json.dumps({**result, "preprocessing": 0}).replace('"preprocessing": 0', '"preprocessing": ' + "[" * 400 + "]" * 400)
    (run / "result.json").write_text(deep)
    (run / "environment.json").write_text(json.dumps({"command": [[1]], "commit": [1], "device": {"a": {}}}))
    for text in (
        bomb + "recipe: {recipe: *a29}\nteacher: {arch: *a29}\nquant: {bits: *a29}\n",
        "teacher: 5\nquant: [1]\nrecipe: x\nruntime: {seed: []}\n",
        "generator: 5\nteacher: {arch: [1]}\nmethod: 7\ntrain: []\n",
    ):
        (run / "config.yaml").write_text(text)
        assert finetune("report", run).code == 0, text
        Page(run / "report.html")


def test_a_report_that_fails_loses_nothing(
    digits_run: Path, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> Path:
        raise RuntimeError(f"no picture of\n{folder.name}")

    monkeypatch.setattr(command, "draw_report", broken)
    done = finetune("--shards", digits_run, "--bits", "w4a4", "--epochs", 0, "--out", tmp_path / "run")
    assert done.code == 0
    assert (
        "Warning: the run is complete, but its report is not (RuntimeError: no picture of run); try `clusterq-finetune report"
        in done.err
    )
    assert (tmp_path / "run" / "result.json").is_file()


def test_drawing_is_free_of_torch(tuned: Path, digits_run: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from clusterq_common.report.draw import draw_report\n"
    code += "for n, run in enumerate(sys.argv[2:]): draw_report(Path(run), Path(sys.argv[1]) / f'{n}.html')\n"
    code += "print(sorted({'torch', 'webdataset'} & set(sys.modules)))"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    words = [sys.executable, "-c", code, tmp_path, tuned, digits_run]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert Page(tmp_path / "0.html").images == 10


def test_in_a_browser(tuned: Path, digits_run: Path, tmp_path: Path) -> None:
    browser = Browser(tmp_path)
    browser.open_something_that_asks(tmp_path)
    assert browser.asked(), "a page that asks is found out"
    for page in (tuned / "report.html", digits_run / "report.html"):
        shown = browser.open(page, "--dump-dom")
        assert not browser.asked()
        written = page.read_text()
        for element in ("<section", "<svg", "<img", "<tr"):
            assert shown.count(element) == written.count(element), f"{element} is understood as it was written"
    browser.open(tuned / "report.html", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000
