"""Mistakes: exit code 2, one sentence that helps, nothing written and nothing lost."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clusterq_common import files
from clusterq_gen.config import EmitConfig
from clusterq_gen.emission.build_manifest import read_class_names
from tests.conftest import BRIEF, FACTORY, TINY, Cli, DigitsTeacher, Outcome

FOUR_CHANNELS = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def refused(done: Outcome, *words: str) -> None:
    """Exit code 2 and one sentence with all of `words`; no traceback."""
    assert done.code == 2, (done.out, done.err)
    for word in words:
        assert word in done.err, f"{word!r} not in {done.err!r}"
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--arch", "resnet19"], ["--arch", "'resnet19'", "resnet18"]),
        (["--arch", "alexnet", "--weights", "random"], ["no BatchNorm"]),
        ([], ["--arch is missing"]),
        (["--arch", "resnet20_cifar10", "--bits", "w1a4"], ["--bits", "'w1a4'", "2 to 8"]),
        (["--arch", "resnet20_cifar10", "--bits", "w4"], ["--bits", "'w4'", "w4a4"]),
        (["--arch", "resnet20_cifar10", "--per-class", "0"], ["per-class", "greater than or equal to 1", "found 0"]),
        (["--arch", "resnet20_cifar10", "--epochs", "-3"], ["epochs", "found -3"]),
        (["--arch", "resnet20_cifar10", "--batch-size", "0"], ["batch-size", "found 0"]),
        (
            ["--arch", "resnet20_cifar10", "--epochs", "3", "--warmup-epochs", "5"],
            ["warmup_epochs (5) must be below epochs (3)"],
        ),
        (["--arch", "resnet20_cifar10", "--method", "magic"], ["magic"]),
        (["--arch", "resnet20_cifar10", "--weights", "absent.pth"], ["absent.pth does not exist"]),
        (["--arch", "resnet20_cifar10", "--mean", "a,b"], ["mean"]),
        (["--arch", "absent.py:net", "--weights", "x"], ["absent.py does not exist"]),
        (["--config", "absent.yaml"], ["absent.yaml does not exist"]),
        (["--no-such-flag"], ["--no-such-flag"]),
    ],
)
def test_generator_flags(flags: list[str], words: list[str], gen: Cli, tmp_path: Path) -> None:
    preset = [] if "--config" in flags else ["--preset", "quick"]
    refused(gen("train", *flags, *preset, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["[]", "null", "text", "3"])
@pytest.mark.parametrize("section", ["teacher", "output", "quant"])
def test_a_config_whose_sections_are_none(section: str, value: str, gen: Cli, finetune: Cli, tmp_path: Path) -> None:
    """A received file may hold anything there."""
    config = tmp_path / "config.yaml"
    sections = {"teacher": "{arch: resnet20_cifar10}", "recipe": "{}", "output": "{}", section: value}
    config.write_text("".join(f"{name}: {given}\n" for name, given in sections.items()))
    refused(gen("train", "--config", config, "--out", tmp_path / "out"), f"{section} is", "expected a section of settings")
    refused(
        finetune("--shards", tmp_path, "--config", config, "--out", tmp_path / "out"), f"{section} is", "expected a section"
    )


def test_class_names_are_read_before_any_training(gen: Cli, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    train = (
        "train",
        *digits_teacher.flags,
        "--preset",
        "quick",
        "--out",
        tmp_path / "out",
        "--class-names",
        tmp_path / "names",
    )
    (tmp_path / "names").write_bytes(b"caf\xe9\n" * 10)
    refused(gen(*train), "--class-names", "no text in UTF-8")
    (tmp_path / "names").write_text("a\nb\n")
    refused(gen(*train), "--class-names", "holds 2 names, expected 10")
    assert not (tmp_path / "out").exists()
    (tmp_path / "names").write_text("".join(f"{name}\n" for name in "abcdefghij"), encoding="utf-8-sig")
    assert read_class_names(EmitConfig(class_names=str(tmp_path / "names")), 10) == list("abcdefghij")


@pytest.mark.parametrize(("program", "shadow"), [("clusterq_gen", "typer"), ("clusterq_finetune", "clusterq_cli")])
def test_no_module_of_the_current_folder_is_imported(program: str, shadow: str, tmp_path: Path) -> None:
    """It may be a folder that was received, and `python -m` would look there first."""
    (tmp_path / f"{shadow}.py").write_text("print('ran')")
    done = subprocess.run(
        [sys.executable, "-m", program, "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ran" not in done.stdout


def test_channels_that_shards_cannot_hold(gen: Cli, tmp_path: Path) -> None:
    """Found out before hours of training, not when the images are to be stored."""
    (tmp_path / "four.py").write_text(FOUR_CHANNELS)
    sizes = ("--input-size", 8, "--in-channels", 4, "--num-classes", 3, "--mean", "0.5,0.5,0.5,0.5", "--std", "1,1,1,1")
    done = gen(
        "train", "--arch", f"{tmp_path / 'four.py'}:net", "--weights", "random", *sizes, *TINY, "--out", tmp_path / "out"
    )
    refused(done, "--in-channels", "images of 4 channels, expected 1 or 3")
    assert not (tmp_path / "out").exists()


def test_cuda_where_there_is_none(gen: Cli, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    refused(
        gen("train", *digits_teacher.flags, *TINY, "--device", "cuda", "--out", tmp_path / "o"), "--device cuda", "--device cpu"
    )


def test_weights_that_do_not_fit(gen: Cli, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    state = load_file(digits_teacher.weights)
    del state["0.weight"]
    state["surplus"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    flags = [str(tmp_path / "w.safetensors") if flag == str(digits_teacher.weights) else flag for flag in digits_teacher.flags]
    refused(gen("train", *flags, *TINY, "--out", tmp_path / "out"), "missing 0.weight", "unexpected surplus")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_kept(gen: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits_run.rglob("*")}
    refused(gen("train", *digits_teacher.flags, *TINY, "--out", digits_run), "not empty", "--resume", "--overwrite")
    refused(gen("train", *digits_teacher.flags, *TINY, "--out", digits_run, "--resume", "--overwrite"), "exclude each other")
    refused(
        gen("train", *digits_teacher.flags, *TINY, "--out", digits_run, "--resume", "--alpha-de", 5),
        "--alpha-de",
        "contradicts",
    )
    assert before == {path: path.stat().st_mtime_ns for path in digits_run.rglob("*")}
    (tmp_path / "notes.txt").write_text("mine")
    refused(gen("train", *digits_teacher.flags, *TINY, "--out", tmp_path, "--resume"), "holds no config.yaml")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    refused(gen("train", *digits_teacher.flags, *TINY, "--out", tmp_path / "notes.txt"), "is a file")


def test_emit_without_a_run(gen: Cli, tmp_path: Path, digits_run: Path) -> None:
    refused(gen("emit", "--run", tmp_path), "config.yaml does not exist")
    shutil.copy(digits_run / "config.yaml", tmp_path)
    refused(gen("emit", "--run", tmp_path, "--arch", FACTORY), "generator.safetensors", "--resume")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    shards = {path.name for path in shutil.copytree(digits_run / "shards", tmp_path / "full", dirs_exist_ok=True).iterdir()}
    refused(gen("emit", "--run", digits_run, "--out", tmp_path / "full", "--overwrite"), "files that are no shards")
    assert {path.name for path in (tmp_path / "full").iterdir()} == shards, "a refusal removes nothing"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["--shards is missing"]),
        (["--shards", "absent"], ["absent is no folder"]),
        (["--shards", "RUN", "--bits", "w9a4"], ["--bits", "w9a4"]),
        (["--shards", "RUN", "--ce-weight", "0", "--kl-weight", "0"], ["nothing would be learned"]),
        (["--shards", "RUN", "--epochs", "-1"], ["epochs", "found -1"]),
        (["--shards", "RUN", "--first-last-bits", "1"], ["expected 2 to 8 bits"]),
        (["--shards", "RUN", "--val", "absent"], ["--val", "absent is no folder"]),
        (["--shards", "RUN", "--arch", "resnet20_cifar10", "--weights", "random"], ["made for a teacher with digest"]),
        (["--shards", "RUN", "--config", "absent.yaml"], ["absent.yaml does not exist"]),
    ],
)
def test_finetune_flags(flags: list[str], words: list[str], finetune: Cli, digits_run: Path, tmp_path: Path) -> None:
    arguments = [str(digits_run) if flag == "RUN" else flag for flag in flags]
    refused(finetune(*arguments, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_shards_of_another_teacher(finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    state = load_file(digits_teacher.weights)
    state["0.weight"] += 0.01
    save_file(state, tmp_path / "other.safetensors")
    done = finetune("--shards", digits_run, "--weights", tmp_path / "other.safetensors", "--out", tmp_path / "out")
    refused(done, "were made for a teacher with digest sha256:", "--weights")
    assert not (tmp_path / "out").exists()


def test_broken_shards(finetune: Cli, digits_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    shard = run / "shards" / "synth-train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(finetune("--shards", run), "cut short", "emit")
    shutil.rmtree(run / "shards")
    (run / "shards").mkdir()
    refused(finetune("--shards", run), "holds no manifest.json")


def test_bad_validation_folders(finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    (tmp_path / "val" / "0").mkdir(parents=True)
    refused(
        finetune("--shards", digits_run, "--val", tmp_path / "val", "--out", tmp_path / "o"), "1 class folders", "10 classes"
    )
    for digit in range(1, 10):
        (tmp_path / "val" / str(digit)).mkdir()
    refused(finetune("--shards", digits_run, "--val", tmp_path / "val", "--out", tmp_path / "o"), "no images")
    Image.new("L", (8, 8)).save(tmp_path / "val" / "3" / "good.png")
    (tmp_path / "val" / "3" / "bad.png").write_bytes(b"broken")
    done = finetune("--shards", digits_run, "--epochs", 0, "--val", tmp_path / "val", "--out", tmp_path / "o", "--json")
    assert done.code == 0, done.err
    student = json.loads(done.out.splitlines()[-1])["student"]
    assert student["unreadable"] == ["3/bad.png"]
    assert student["images"] == 1
    assert "1 unreadable image: 3/bad.png" in done.out


def test_evaluating_what_is_no_student(finetune: Cli, digits_run: Path, digits_teacher: DigitsTeacher, tmp_path: Path) -> None:
    refused(finetune("evaluate", "--student", tmp_path, "--val", digits_teacher.val), "holds no student.safetensors")
    done = finetune("--shards", digits_run, "--epochs", 0, "--out", tmp_path / "s")
    assert done.code == 0, done.err
    state = load_file(tmp_path / "s" / "student.safetensors")
    save_file({name: value for name, value in state.items() if "scale" not in name}, tmp_path / "s" / "student.safetensors")
    refused(finetune("evaluate", "--student", tmp_path / "s", "--val", digits_teacher.val), "does not fit", "fine-tune again")
    (tmp_path / "s" / "student.safetensors").write_bytes(b"junk")
    refused(finetune("evaluate", "--student", tmp_path / "s", "--val", digits_teacher.val), "does not fit")


def test_nan_in_fine_tuning(finetune: Cli, digits_run: Path, tmp_path: Path) -> None:
    # Without quantizers, whose ranges would hold the weights back.
    flags = ["--bits", "w32a32", "--lr", 1e30, "--epochs", 3, "--steps-per-epoch", 0, "--batch-size", 16]
    done = finetune("--shards", digits_run, *flags, "--out", tmp_path / "out")
    refused(done, "expected a finite number", "smaller --lr")
    assert not (tmp_path / "out" / "student.safetensors").exists()


def test_full_disk(gen: Cli, digits_teacher: DigitsTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills while the checkpoint is written: said, and the file that was there stays whole."""
    command = ("train", *digits_teacher.flags, *BRIEF, "--out")
    assert gen(*command, tmp_path / "whole").code == 0
    written: list[Path] = []
    real = files.publish

    def fill_up(partial: Path, path: Path) -> None:
        if path.name == "last.pt" and written:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        real(partial, path)

    monkeypatch.setattr(files, "publish", fill_up)
    done = gen(*command, tmp_path / "out")
    refused(done, "No space left on device", "free some space", "--resume")
    assert not list((tmp_path / "out").rglob("*.partial"))
    monkeypatch.setattr(files, "publish", real)
    again = gen(*command, tmp_path / "out", "--resume")
    assert again.code == 0, again.err
    shard = "shards/synth-train-000000.tar"
    assert (tmp_path / "out" / shard).read_bytes() == (tmp_path / "whole" / shard).read_bytes()


def test_debug_shows_the_traceback(gen: Cli, tmp_path: Path) -> None:
    done = gen("train", "--arch", "resnet19", "--preset", "quick", "--out", tmp_path / "out", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert "no pytorchcv model" in done.err
