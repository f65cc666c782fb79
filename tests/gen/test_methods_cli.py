"""Every method through the command line, on the digits teacher, for a few steps."""

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import Cli, DigitsTeacher

SHORT = ["--preset", "quick", "--epochs", 3, "--warmup-epochs", 1, "--steps-per-epoch", 5, "--batch-size", 40, "--width", 16]
SHORT += ["--per-class", 1, "--keep-misclassified"]
EVERYTHING = ["--mix-probability", 0.3, "--mix-classes", 3, "--hard-gamma", 1, "--soft-target", 0.9, "--fda-units", "std"]


@pytest.mark.parametrize(
    ("method", "flags", "generator_terms", "student_terms"),
    [
        ("clusterq", EVERYTHING, {"class", "bns", "fda", "de"}, {"ce", "kl"}),
        ("gdfq", ["--generator", "conditional-bn"], {"class", "bns"}, {"ce", "kl"}),
        ("adadfq", [], {"agreement", "bns", "disagreement", "boundary"}, {"entropy"}),
        ("qimera", ["--generator", "conditional-bn"], {"class", "bns"}, {"ce", "kl"}),
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
    refused = gen("train", *digits_teacher.flags, "--method", "magic", "--out", tmp_path / "out")
    assert refused.code == 2
    assert not (tmp_path / "out").exists()
