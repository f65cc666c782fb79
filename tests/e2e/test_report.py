"""report.html through both command lines: what it says of each kind of run, and that a browser shows it without asking anyone."""

import csv
import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from clusterq_common.run.own_runs import remember_run
from tests.browser import Browser
from tests.conftest import FACTORY, Cli, DigitsTeacher
from tests.docs.commands import parse
from tests.e2e.page import UNBROKEN, Page


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
    assert finetune("report", run, "--analyse", "--arch", FACTORY).code == 0
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
    assert (
        f"(a record: with the paths after .../ cut, it does not run as it stands): clusterq-finetune {started} Names after .../ stand for what lies outside"
        in page.text
    )
    assert "On another machine say where those files are now: --shards and --weights (and --arch, for" in page.text
    assert "shards ../shards" in page.text
    assert "weights .../teacher.safetensors" in page.text
    assert "The images cannot be shown. --shards: ../shards/synth-train-000000.tar" in page.text
    for path in (digits_run / "report.html", tuned / "report.html"):
        assert not re.search(r"/(tmp|home|root|work)/", Page(path).text)


def commands_on(page: Path) -> list[list[str]]:
    """The commands that a page gives to type, as a shell reads them."""
    blocks = re.findall(r"<pre><code>(.*?)</code></pre>", UNBROKEN.sub(r"\1", page.read_text()), re.DOTALL)
    return [shlex.split(html.unescape(block)) for block in blocks]


def test_the_commands_on_a_page_run_as_printed(
    tuned: Path, digits_run: Path, gen: Cli, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    monkeypatch.chdir(run)
    remember_run(run, [FACTORY])  # The copy counts as a run of this user's, as the original does.
    export, again, reproduce, *_ = commands_on(run / "report.html")
    # Code of one's own runs without being named again, since this user started the run.
    assert {export[0], again[0], reproduce[0]} == {"clusterq-finetune"}
    parse(export[0], export[1:])
    dry = finetune(*again[1:], "--dry-run")
    assert (dry.code, "120 training images" in dry.out) == (0, True)
    done = finetune(*reproduce[1:], "--no-report")
    assert (done.code, done.out.splitlines()[-1].partition(":")[0]) == (0, "identical")
    assert not (tmp_path / "reproduced" / "report.html").exists()
    shutil.copytree(digits_run, tmp_path / "generator")
    remember_run(tmp_path / "generator", [FACTORY])
    monkeypatch.chdir(tmp_path / "generator")
    tune, again, *_ = commands_on(digits_run / "report.html")
    assert finetune(*tune[1:], "--dry-run").code == 0
    assert gen(*again[1:], "--dry-run").code == 0


def test_the_next_command_of_an_unfinished_run_goes_on(
    digits_run: Path, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(digits_run, run, ignore=shutil.ignore_patterns("shards", "report.html"))
    remember_run(run, [FACTORY])
    monkeypatch.chdir(run)
    assert gen("report", run).code == 0
    resume, *_ = commands_on(run / "report.html")
    assert resume == ["clusterq-gen", "train", "--out", ".", "--resume"]
    assert gen(*resume[1:], "--no-report").code == 0
    assert (run / "shards" / "manifest.json").is_file()


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


def test_no_report(digits_run: Path, digits_teacher: DigitsTeacher, gen: Cli, finetune: Cli, tmp_path: Path) -> None:
    small = ["--epochs", 2, "--steps-per-epoch", 2, "--warmup-epochs", 1, "--width", 8, "--per-class", 2, "--preset", "quick"]
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    done = gen("train", *digits_teacher.flags, *small, "--keep-misclassified", "--no-report", "--out", run)
    assert done.code == 0, done.err
    assert finetune("--shards", digits_run, "--epochs", 0, "--no-report", "--out", tuned).code == 0
    for folder in (run, tuned):
        assert not {"report.html", "layers.csv", "analysis.json"} & {path.name for path in folder.iterdir()}
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
    assert "The run is not finished: 100 of 360 steps are on record" in page.text
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
    assert gen("train", *digits_teacher.flags, *flags, "--report", "--out", tmp_path / "bank").code == 0
    page = Page(tmp_path / "bank" / "report.html")
    assert "bns, first step" in page.text
    assert "In-loop student" not in page.text


ROW = {"set": "clusterq", "bits": "w4a4", "seeds": 2, "images": 5120, "teacher": "92.02", "calibrated": "87.96 ± 0.07"}
ROW |= {"student": "91.17 ± 0.01", "below teacher [95 %]": "0.85 [0.60, 1.10]", "set, CPU min": "10.4"}
OTHER = ROW | {"set": "gdfq", "student": "91.00 ± 0.05", "below teacher [95 %]": "1.02 [0.77, 1.27]", "calibrated": ""}
COMPARISON = [ROW, OTHER]


def test_a_comparison(finetune: Cli, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps(COMPARISON))
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


def test_drawing_is_free_of_torch(tuned: Path, digits_run: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from clusterq_report.pages.draw import draw_report\n"
    code += "for n, run in enumerate(sys.argv[2:]): draw_report(Path(run), Path(sys.argv[1]) / f'{n}.html')\n"
    code += "print(sorted({'torch', 'webdataset'} & set(sys.modules)))"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    words = [sys.executable, "-c", code, tmp_path, tuned, digits_run]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert Page(tmp_path / "0.html").images == 10


# Opens everything, and writes down the smallest text of a chart as a person sees it, in pixels; then sorts a table, if there is one.
MEASURE = """<script>
document.querySelectorAll("details").forEach(function (one) { one.open = true; });
var sizes = Array.from(document.querySelectorAll("svg text")).map(function (text) {
  var place = text.getScreenCTM();  // Some texts are turned.
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(place.a, place.b);
});
document.body.dataset.least = Math.min.apply(null, sizes);
document.body.dataset.wide = document.body.scrollWidth;
var table = document.querySelector("table.sortable");
if (table) {
  table.tHead.rows[0].cells[2].querySelector("button").click();
  document.body.dataset.sorted = Array.from(table.tBodies[0].rows).map(function (row) { return row.cells[2].textContent; }).join(" ");
}
</script></body>"""


def on_a_phone(page: Path, tmp_path: Path) -> dict[str, str]:
    """Return what MEASURE finds in a page that is 390 pixels wide, after checks of its text's size and its width."""
    browser = Browser(tmp_path)
    shown = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    # A browser's window is never as narrow as a phone, but below 50rem the layout is the same.
    narrow = tmp_path / "phone.html"
    narrow.write_text(shown.replace("<body>", '<body style="width:390px;margin:0">').replace("</body>", MEASURE))
    dumped = browser.open(narrow, "--dump-dom", "--window-size=500,900")
    body = dict(re.findall(r'data-(\w+)="([^"]*)"', dumped[dumped.index("<body") :].partition(">")[0]))
    assert float(body["least"]) >= 11
    assert float(body["wide"]) <= 390, "nothing makes the page wider than the phone"
    return body


def test_on_a_phone_text_is_legible_and_a_table_is_sorted(tuned: Path, tmp_path: Path) -> None:
    body = on_a_phone(tuned / "report.html", tmp_path)
    weights = [int(text.replace(",", "")) for text in body["sorted"].split()]
    assert len(weights) > 2
    assert weights == sorted(weights)


def test_on_a_phone_a_generators_page_is_legible(digits_run: Path, tmp_path: Path) -> None:
    on_a_phone(digits_run / "report.html", tmp_path)


def test_on_a_phone_a_comparison_is_legible(finetune: Cli, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps(COMPARISON))
    assert finetune("report", tmp_path).code == 0
    on_a_phone(tmp_path / "report.html", tmp_path)


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
