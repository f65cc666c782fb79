"""Commands about reports: pages drawn again, the commands that pages print, runs without a report, unfinished runs."""

import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clusterq_common.run.own_runs import remember_run
from tests.conftest import FACTORY, Cli, DigitsTeacher
from tests.docs.commands import parse
from tests.e2e.page import UNBROKEN, Page


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


def test_drawing_is_free_of_torch(tuned: Path, digits_run: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from clusterq_report.pages.draw import draw_report\n"
    code += "for n, run in enumerate(sys.argv[2:]): draw_report(Path(run), Path(sys.argv[1]) / f'{n}.html')\n"
    code += "print(sorted({'torch', 'webdataset'} & set(sys.modules)))"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    words = [sys.executable, "-c", code, tmp_path, tuned, digits_run]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert Page(tmp_path / "0.html").images == 10
