"""The student is a function of the shards' content and the settings: not of processes, folders, or the order of files."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import Cli, DigitsTeacher

FLAGS = ["--bits", "w3a3", "--epochs", "2", "--steps-per-epoch", "0", "--batch-size", "32", "--json"]


@pytest.fixture(scope="module")
def shards(digits_run: Path, tmp_path_factory: pytest.TempPathFactory, gen: Cli) -> Path:
    """The shared run's generator's images again, in several shards."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    done = gen("emit", "--run", digits_run, "--per-class", 7, "--samples-per-shard", 16, "--out", folder)
    assert done.code == 0, done.err
    return folder


def student(finetune: Cli, teacher: DigitsTeacher, shards: Path, out: Path, *flags: object) -> str:
    """The SHA-256 of what comes out."""
    done = finetune("--shards", shards, *FLAGS, *teacher.flags[:4], *flags, "--out", out)
    assert done.code == 0, done.err
    digest: str = json.loads(done.out.splitlines()[-1])["student"]["sha256"]
    return digest


@pytest.fixture(scope="module")
def first(shards: Path, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path_factory: pytest.TempPathFactory) -> str:
    return student(finetune, digits_teacher, shards, tmp_path_factory.mktemp("first"))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on two cores, four are many
@pytest.mark.parametrize("workers", [0, 2, 4])
def test_any_number_of_workers(
    workers: int, shards: Path, first: str, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    assert student(finetune, digits_teacher, shards, tmp_path / "out", "--workers", workers) == first


def test_any_order_of_files_in_any_folder(
    shards: Path, first: str, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    """Where the files were made in the opposite order and at other times, folders list them otherwise."""
    copy = tmp_path / "another name" / "x"
    copy.mkdir(parents=True)
    names = sorted((path.name for path in shards.iterdir()), reverse=True)
    for number, name in enumerate(names):
        shutil.copyfile(shards / name, copy / name)
        os.utime(copy / name, (10_000 * number, 10_000 * number))
    assert student(finetune, digits_teacher, copy, tmp_path / "out") == first


def test_another_seed_gives_another_student(
    shards: Path, first: str, digits_teacher: DigitsTeacher, finetune: Cli, tmp_path: Path
) -> None:
    assert student(finetune, digits_teacher, shards, tmp_path / "out", "--seed", 1) != first
