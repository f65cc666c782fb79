"""What tests through both command lines share."""

from pathlib import Path

import pytest

from tests.conftest import Cli, DigitsTeacher


@pytest.fixture(scope="session")
def tuned(digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning that was evaluated, with every part of a report."""
    out = tmp_path_factory.mktemp("report") / "tuned"
    flags = [
        "--recipe",
        "best",
        "--reconstruct-steps",
        5,
        "--reconstruct-images",
        32,
        "--epochs",
        2,
        "--steps-per-epoch",
        0,
        "--batch-size",
        32,
    ]
    done = finetune("--shards", digits_run, "--bits", "w3a3", *flags, "--val", digits_teacher.val, "--out", out)
    assert done.code == 0, done.err
    assert f"report: {out / 'report.html'}" in done.err
    return out
