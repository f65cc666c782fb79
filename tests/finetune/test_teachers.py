"""Where a teacher may come from: the command line and the local run folder, never a stranger's manifest."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from clusterq_common.errors import ClusterqError
from clusterq_common.shards.manifest import meaning_of, read_manifest
from clusterq_finetune.teachers import find_teacher
from tests.conftest import Cli, DigitsTeacher


def foreign(digits_run: Path, tmp_path: Path, **facts: object) -> Path:
    """The digits' shards as someone else might hand them over, their manifest saying other things of the teacher."""
    folder = tmp_path / "foreign"
    shutil.copytree(digits_run / "shards", folder)
    values = json.loads((folder / "manifest.json").read_text())
    values["teacher"].update(facts)
    (folder / "manifest.json").write_text(json.dumps({**values, "meaning": meaning_of(values)}))
    return folder


@pytest.mark.parametrize("is_factory", [True, False])
def test_no_code_is_loaded_because_a_manifest_names_it(
    is_factory: bool, finetune: Cli, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\ndef build():\n    raise SystemExit\n")
    shards = foreign(digits_run, tmp_path, arch="evil.py:build", is_factory=is_factory)
    done = finetune("--shards", shards, "--out", tmp_path / "out")
    assert done.code == 2
    assert "--arch is missing" in done.err
    assert not (tmp_path / "ran").exists()


def test_flags_stand_above_the_run_folder_and_it_above_the_manifest(
    digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path
) -> None:
    manifest = read_manifest(digits_run / "shards")
    local = find_teacher({}, digits_run, manifest)
    assert local.weights is not None
    assert Path(local.weights).resolve() == digits_teacher.weights.resolve()
    assert find_teacher({"weights": "mine.pth"}, digits_run, manifest).weights == "mine.pth"
    other = find_teacher({"arch": "resnet20_cifar10"}, digits_run, manifest)
    assert (other.arch, other.weights, other.input_size) == ("resnet20_cifar10", None, None), "another model, its own sizes"
    with pytest.raises(ClusterqError, match="arch is missing"):
        find_teacher({}, None, manifest)
    named = read_manifest(foreign(digits_run, tmp_path, arch="resnet20_cifar10", is_factory=False))
    assert find_teacher({}, None, named).arch == "resnet20_cifar10"


@pytest.mark.parametrize("arch", ["evil.py:build", "{run}/evil.py:build"])
def test_no_code_is_loaded_that_came_with_a_folder(
    arch: str,
    gen: Cli,
    finetune: Cli,
    digits_teacher: DigitsTeacher,
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "received"
    shutil.copytree(digits_run, run)
    monkeypatch.chdir(run)
    (run / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["teacher"]["arch"] = arch.format(run=run)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    student = run / "finetune-w4a4"
    assert finetune("--shards", digits_run, "--epochs", 0, "--out", student).code == 0
    settings = yaml.safe_load((student / "config.yaml").read_text())
    settings["teacher"]["arch"] = "evil.py:build"
    (student / "config.yaml").write_text(yaml.safe_dump(settings))
    for done in (
        finetune("--shards", run, "--out", tmp_path / "out"),
        gen("emit", "--run", run, "--per-class", 1, "--out", tmp_path / "more"),
        finetune("evaluate", "--student", student, "--val", digits_teacher.val),
    ):
        assert done.code == 2
        assert "nothing of that file was run" in done.err
    assert not (run / "ran").exists()
