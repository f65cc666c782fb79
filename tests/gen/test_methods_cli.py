"""Every method through the command line, on the digits teacher, for a few steps."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import FACTORY, Cli, DigitsTeacher

SHORT = ["--preset", "quick", "--epochs", 3, "--warmup-epochs", 1, "--steps-per-epoch", 5, "--batch-size", 40, "--width", 16]
SHORT += ["--per-class", 1, "--keep-misclassified"]
EVERYTHING = [
    "--mix-probability",
    0.3,
    "--mix-classes",
    3,
    "--hard-gamma",
    1,
    "--soft-target",
    0.9,
    "--bns-units",
    "std",
    "--fda-units",
    "std",
]


@pytest.mark.parametrize(
    ("method", "flags", "generator_terms", "student_terms"),
    [
        ("clusterq", EVERYTHING, {"class", "bns", "spread", "fda", "de"}, {"ce", "kl"}),
        ("gdfq", ["--conditioning", "batchnorm"], {"class", "bns", "spread"}, {"ce", "kl"}),
        ("adadfq", [], {"agreement", "bns", "spread", "disagreement", "boundary"}, {"entropy"}),
        ("qimera", ["--conditioning", "batchnorm"], {"class", "bns", "spread"}, {"ce", "kl"}),
    ],
)
def test_a_short_run(
    method: str,
    flags: list[object],
    generator_terms: set[str],
    student_terms: set[str],
    digits_teacher: DigitsTeacher,
    gen: Cli,
    tmp_path: Path,
) -> None:
    done = gen("train", *digits_teacher.flags, *SHORT, "--method", method, *flags, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 15
    last = records[-1]
    assert {key.removeprefix("loss/") for key in last if key.startswith("loss/")} == generator_terms
    assert {key.removeprefix("student/") for key in last if key.startswith("student/")} == student_terms | {"agreement"}
    assert not any(key.startswith("student/") for key in records[0])
    gradients = {key for record in records for key in record if key.startswith("gradient/")}
    assert gradients, "each term's gradient at the generator is recorded"
    manifest = json.loads((tmp_path / "out" / "shards" / "manifest.json").read_text())
    assert manifest["generation"]["method"] == method
    assert (
        manifest["generation"]["settings"]["method"] == yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["method"]
    )
    assert manifest["splits"]["train"]["per_class"] == [1] * 10


def test_a_method_nobody_knows_is_refused(digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path) -> None:
    refused = gen("train", *digits_teacher.flags, "--method", "gdqf", "--out", tmp_path / "out")
    assert refused.code == 2
    assert "did you mean gdfq?" in refused.err
    assert not (tmp_path / "out").exists()


OWN_METHOD = """
from clusterq_gen.methods.gdfq import base_terms, student_objective
from clusterq_gen.methods.method import Method, Term


def flat(batch):
    return batch.teacher_logits.square().mean()


def build(config, seed):
    return Method("mine", (*base_terms(config, seed), Term("flat", 0.1, flat, warmup=True)), student_objective(config))


def nothing(config, seed):
    return None
"""


def test_a_method_of_ones_own_is_a_file(
    digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN_METHOD)
    done = gen("train", *digits_teacher.flags, *SHORT, "--method", "mine.py:build", "--out", "out")
    assert done.code == 0, done.err
    first = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[0])
    assert {"loss/class", "loss/bns", "loss/flat"} <= set(first)
    manifest = Path("out/shards/manifest.json").read_text()
    assert json.loads(manifest)["generation"]["method"] == "mine.py:build"
    assert str(tmp_path) not in manifest, "a set that is passed on says nothing of its maker's folders"
    monkeypatch.chdir(tmp_path / "out")
    again = gen("train", "--resume", "--method", "../mine.py:build", "--out", ".")
    assert again.code == 0, again.err

    shutil.move(tmp_path / "mine.py", tmp_path / "out" / "mine.py")
    config = Path("config.yaml")
    config.write_text(config.read_text().replace("/mine.py:build", "/out/mine.py:build"))
    refused = gen("train", "--resume", "--out", ".", "--arch", FACTORY)
    assert refused.code == 2
    assert "--method: config.yaml names code in a file" in refused.err, "code that came with a folder is not run"
    looked_at = gen("train", "--resume", "--out", ".", "--arch", FACTORY, "--method", "mine.py:build")
    assert looked_at.code == 0, looked_at.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.py:absent", "has no function absent"),
        ("mine.py:nothing", "returned NoneType"),
        ("mine.py", "names no function"),
        ("other.py:build", "does not exist"),
    ],
)
def test_a_file_that_holds_no_method_is_refused_before_a_folder_is_made(
    name: str, words: str, digits_teacher: DigitsTeacher, gen: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN_METHOD)
    refused = gen("train", *digits_teacher.flags, *SHORT, "--method", name, "--out", "out")
    assert refused.code == 2
    assert "--method" in refused.err
    assert words in refused.err
    assert not Path("out").exists()
