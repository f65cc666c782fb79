"""Shared fixtures of tests through both command lines."""

from pathlib import Path

import pytest

from tests.conftest import Cli, DigitsTeacher, made_once

# Every part of `best`, in seconds.
SHORT_BEST = ["--recipe", "best", "--reconstruct-steps", 5, "--reconstruct-images", 32]
SHORT_BEST += ["--epochs", 2, "--steps-per-epoch", 0, "--batch-size", 32]


@pytest.fixture(scope="session")
def tuned(digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning that was evaluated, with every part of a report."""

    def make(folder: Path) -> None:
        out = folder / "tuned"
        done = finetune(
            "--shards", digits_run, "--bits", "w3a3", *SHORT_BEST, "--report", "--val", digits_teacher.val, "--out", out
        )
        assert done.code == 0, done.err
        assert f"report: {out / 'report.html'}" in done.err

    return made_once("tuned", make, tmp_path_factory) / "tuned"
