"""Folders that were received: whatever they name, none of their code runs; one's own runs and the command line's code do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from clusterq_common.run import own_runs
from clusterq_common.run.own_runs import STATE
from tests.conftest import FACTORY, Cli, DigitsTeacher

# Runs when it is loaded, and would serve as the teacher.
CANARY = f"""from pathlib import Path
Path({{canary!r}}).touch()
import importlib.util
spec = importlib.util.spec_from_file_location("digits", {FACTORY.rpartition(":")[0]!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
net = module.digits_net
def method(config, seed):
    from clusterq_gen.methods.clusterq import clusterq
    return clusterq(config, seed)
"""
STUDENT = "finetune-w4a4"


@pytest.fixture(scope="session")
def tuned_here(digits_run: Path, finetune: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One's own generator run with a student in it; do not change it."""
    run = tmp_path_factory.mktemp("own") / "run"
    shutil.copytree(digits_run, run)
    done = finetune("--shards", run, "--arch", FACTORY, "--bits", "w4a4", "--epochs", 0, "--no-report")
    assert done.code == 0, done.err
    return run


class Received:
    """A copy of a run and its student, in which every file that can name code names the canary's."""

    def __init__(self, own: Path, folder: Path, teacher: DigitsTeacher) -> None:
        self.folder, self.run, self.teacher = folder, folder / "run", teacher
        self.student, self.canary = self.run / STUDENT, folder / "canary"
        shutil.copytree(own, self.run)
        for place in (self.folder, self.run, self.student):
            (place / "evil.py").write_text(CANARY.format(canary=str(self.canary)))
        (folder / "link").symlink_to(self.run)
        (folder / "out").mkdir()

    def name(self, arch: object, method: str | None = None) -> None:
        """Put `arch` into all settings, and `method` into the generator's."""
        for file in (self.run / "config.yaml", self.student / "config.yaml"):
            values = yaml.safe_load(file.read_text())
            values["teacher"]["arch"] = arch
            if "shards" in values:
                values["shards"] = str(self.run / "shards")
            if method is not None and "method" in values:
                values["method"]["method"] = method
            file.write_text(yaml.safe_dump(values))
        values = json.loads((self.student / "result.json").read_text())
        values["settings"]["teacher"]["arch"] = arch if isinstance(arch, str) else "evil.py:net"
        values["settings"]["shards"] = str(self.run / "shards")
        (self.student / "result.json").write_text(json.dumps(values))

    def commands(self, out: Path) -> dict[str, tuple[str, list[Any]]]:
        """Every command that reads a folder, a config or a result and asks a network, by what it is about."""
        run, student, val = self.run, self.student, self.teacher.val
        resumed = ["--out", run, "--resume", "--no-report"]
        return {
            "emit": ("gen", ["emit", "--run", run, "--per-class", 1, "--out", out / "more", "--no-report"]),
            "resume a generator": ("gen", ["train", *resumed]),
            "generator's config": ("gen", ["train", "--config", run / "config.yaml", "--out", out / "again", "--dry-run"]),
            "generator's report": ("gen", ["report", run, "--analyse"]),
            "shards": ("finetune", ["--shards", run, "--epochs", 0, "--out", out / "tuned", "--no-report"]),
            "a student's config": ("finetune", ["--config", student / "config.yaml", "--out", out / "c", "--dry-run"]),
            "resume a student": (
                "finetune",
                ["--config", student / "config.yaml", "--out", student, "--resume", "--no-report"],
            ),
            "evaluate": ("finetune", ["evaluate", "--student", student, "--val", val]),
            "evaluate in-loop": ("finetune", ["evaluate", "--student", run, "--val", val]),
            "export": (
                "finetune",
                ["export", "--student", student, "--out", out / "s.safetensors", "--format", "safetensors-int"],
            ),
            "reproduce": ("finetune", ["reproduce", student / "result.json", "--out", out / "repeated", "--no-report"]),
            "reproduce a folder": ("finetune", ["reproduce", student, "--out", out / "repeated-2", "--no-report"]),
            "report": ("finetune", ["report", student, "--analyse"]),
            "quality": ("finetune", ["shards", "quality", run, "--out", out / "q.html"]),
            "features": ("finetune", ["figures", "features", run, "--projection", "pca", "--out", out / "features.png"]),
            "diversity": ("finetune", ["figures", "diversity", run, "--out", out / "diversity.png"]),
        }


# Commands that ask no network: they may read such a folder, and run nothing of it.
READERS = [
    ("gen", ["report", "run"]),
    ("finetune", ["report", f"run/{STUDENT}"]),
    ("finetune", ["compare", f"run/{STUDENT}"]),
    ("finetune", ["shards", "info", "run"]),
    ("finetune", ["shards", "verify", "run"]),
    ("finetune", ["shards", "preview", "run", "--out", "p.png"]),
    ("finetune", ["shards", "subset", "run", "--per-class", "2", "--out", "sub"]),
    ("finetune", ["shards", "repair", "run", "--out", "mended"]),
    ("finetune", ["figures", "grid", "run", "--out", "grid.png"]),
]
SPELLINGS: dict[str, Callable[[Received], object]] = {
    "in the current folder": lambda got: "evil.py:net",
    "relative": lambda got: "run/evil.py:net",
    "inside, absolute": lambda got: f"{got.run}/evil.py:net",
    "beside, absolute": lambda got: f"{got.folder}/evil.py:net",
    "through a link": lambda got: f"{got.folder}/link/evil.py:net",
    "through /proc": lambda got: "/proc/self/cwd/run/evil.py:net",
    "with dots": lambda got: f"{got.run}/../run/./evil.py:net",
    "as bytes": lambda got: f"{got.run}/evil.py:net".encode(),
}


@pytest.fixture
def received(tuned_here: Path, digits_teacher: DigitsTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Received:
    got = Received(tuned_here, tmp_path, digits_teacher)
    monkeypatch.chdir(tmp_path)
    return got


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_no_command_runs_code_that_a_folder_names(spelling: str, received: Received, gen: Cli, finetune: Cli) -> None:
    received.name(SPELLINGS[spelling](received))
    programs = {"gen": gen, "finetune": finetune}
    for about, (program, words) in received.commands(received.folder / "out").items():
        done = programs[program](*words)
        assert not received.canary.exists(), about
        assert (about, done.code) == (about, 2), done.err
        assert "--arch" in done.err, about
        assert "nothing of that file was run" in done.err or "teacher.arch" in done.err, (about, done.err)
        # The command's first line and a set's maker come before.
        lines = [
            line for line in done.err.strip().splitlines() if not line.startswith("Set: ") and "; loading torch" not in line
        ]
        assert len(lines) == 1, (about, done.err)
    for program, words in READERS:
        programs[program](*words)
        assert not received.canary.exists(), words


def test_a_method_that_a_folder_names_is_not_run(received: Received, gen: Cli) -> None:
    received.name(FACTORY, method=f"{received.run}/evil.py:method")
    for words in (
        ["train", "--config", received.run / "config.yaml", "--arch", FACTORY, "--out", "again", "--dry-run"],
        ["train", "--out", received.run, "--arch", FACTORY, "--resume"],
    ):
        done = gen(*words)
        assert done.code == 2
        assert f"add --method {received.run}/evil.py:method" in done.err
    done = gen("emit", "--run", received.run, "--arch", FACTORY, "--per-class", 1, "--out", "more", "--no-report")
    assert done.code == 0, done.err
    assert not received.canary.exists(), "a method is not asked for shards"
    looked_at = ["--arch", FACTORY, "--method", f"{received.run}/evil.py:method"]
    done = gen("train", "--config", received.run / "config.yaml", *looked_at, "--out", "again", "--dry-run")
    assert done.code == 0, done.err


def test_a_folder_is_used_with_the_architecture_on_the_command_line(received: Received, gen: Cli, finetune: Cli) -> None:
    received.name(f"{received.run}/evil.py:net")
    programs = {"gen": gen, "finetune": finetune}
    for about, (program, words) in received.commands(received.folder / "out").items():
        done = programs[program](*words, "--arch", FACTORY)
        assert (about, done.code) == (about, 0), done.err
        assert not received.canary.exists(), about


def test_the_flag_that_the_refusal_names_is_the_one_that_helps(received: Received, finetune: Cli) -> None:
    received.name("run/evil.py:net")
    words = ["evaluate", "--student", received.student, "--val", received.teacher.val]
    printed = finetune(*words).err
    named = printed.rpartition("then add --arch ")[2].strip().removesuffix(".")
    assert named == f"{received.run}/evil.py:net"
    assert finetune(*words, "--arch", named).code == 0
    assert received.canary.exists(), "the user has looked at it and named it"


@pytest.fixture
def own(digits_teacher: DigitsTeacher, gen: Cli, finetune: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run and a student of one's own, with a factory of one's own and a state folder of their own."""
    monkeypatch.setenv(STATE, str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(FACTORY.rpartition(":")[0], tmp_path / "mine.py")
    flags = digits_teacher.flags
    flags[1] = "mine.py:digits_net"
    short = ["--preset", "quick", "--epochs", 2, "--warmup-epochs", 1, "--steps-per-epoch", 2, "--batch-size", 20]
    short += ["--per-class", 4, "--refine-steps", 0, "--keep-misclassified", "--no-report"]
    done = gen("train", *flags, *short, "--out", "run")
    assert done.code == 0, done.err
    done = finetune("--shards", "run", "--bits", "w4a4", "--epochs", 0, "--no-report")
    assert done.code == 0, done.err
    return tmp_path / "run"


def own_commands(run: Path, val: Path, out: Path) -> dict[str, tuple[str, list[Any]]]:
    student = run / STUDENT
    return {
        "resume": ("gen", ["train", "--out", run, "--resume", "--no-report"]),
        "emit": ("gen", ["emit", "--run", run, "--per-class", 1, "--out", out / "more", "--no-report"]),
        "config": ("gen", ["train", "--config", run / "config.yaml", "--out", out / "again", "--dry-run"]),
        "report of a generator": ("gen", ["report", run, "--analyse"]),
        "shards": ("finetune", ["--shards", run, "--epochs", 0, "--out", out / "t", "--no-report"]),
        "resume a student": ("finetune", ["--config", student / "config.yaml", "--out", student, "--resume", "--no-report"]),
        "evaluate": ("finetune", ["evaluate", "--student", student, "--val", val]),
        "export": ("finetune", ["export", "--student", student, "--out", out / "s.st", "--format", "safetensors-int"]),
        "report": ("finetune", ["report", student, "--analyse"]),
        "reproduce": ("finetune", ["reproduce", student, "--out", out / "r", "--no-report"]),
    }


def test_runs_of_ones_own_need_no_flag_again(own: Path, digits_teacher: DigitsTeacher, gen: Cli, finetune: Cli) -> None:
    programs = {"gen": gen, "finetune": finetune}
    out = own.parent / "out"
    out.mkdir()
    for about, (program, words) in own_commands(own, digits_teacher.val, out).items():
        done = programs[program](*words)
        assert (about, done.code) == (about, 0), done.err
        assert "says that the weights" not in done.err, about


@pytest.mark.parametrize("change", ["moved", "config", "factory", "record", "other user's state"])
def test_what_has_changed_is_ones_own_no_more(
    change: str, own: Path, digits_teacher: DigitsTeacher, finetune: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = own / STUDENT
    words = ["evaluate", "--student", student, "--val", digits_teacher.val]
    assert finetune(*words).code == 0
    if change == "moved":
        own.rename(own.with_name("elsewhere"))
        words[2] = own.with_name("elsewhere") / STUDENT
    elif change == "config":
        with (student / "config.yaml").open("a") as file:
            file.write("# by somebody\n")
    elif change == "factory":
        with (own.parent / "mine.py").open("a") as file:
            file.write("# by somebody\n")
    elif change == "record":
        for record in (own.parent / "state" / "runs").iterdir():
            record.write_text("[]")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    done = finetune(*words)
    assert done.code == 2
    assert "nothing of that file was run" in done.err
    assert finetune(*words, "--arch", own.parent / "mine.py:digits_net").code == 0


def test_a_state_folder_that_cannot_be_written_is_said_once(
    own: Path, digits_teacher: DigitsTeacher, finetune: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(STATE, str(tmp_path / "file"))
    monkeypatch.setattr(own_runs, "_warned", False)
    words = ["--shards", own, "--arch", "mine.py:digits_net", "--epochs", 0, "--no-report", "--quiet"]
    done = finetune(*words, "--out", "a")
    assert done.code == 0, done.err
    assert done.err.count("Warning: ") == 1
    assert STATE in done.err
    assert "Warning" not in finetune(*words, "--out", "b").err, "once"
    assert finetune("evaluate", "--student", "a", "--val", digits_teacher.val).code == 2


@pytest.mark.parametrize("value", ["", "here", "."])
def test_a_state_folder_is_never_looked_for_where_the_program_is_started(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (STATE, "XDG_STATE_HOME", "HOME"):
        monkeypatch.setenv(name, value)
    folder = own_runs.state_folder()
    assert folder is None or folder.is_absolute()
    assert folder is None or not folder.is_relative_to(tmp_path)


def test_weights_that_a_stranger_chose_are_named(received: Received, finetune: Cli) -> None:
    config = received.run / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["teacher"]["arch"] = FACTORY
    config.write_text(yaml.safe_dump(values))
    words = ["--shards", received.run, "--arch", FACTORY, "--epochs", 0, "--no-report", "--dry-run"]
    printed = finetune(*words, "--out", "a").err
    assert f"says that the weights are {received.teacher.weights}" in printed
    assert "says that" not in finetune(*words, "--weights", received.teacher.weights, "--out", "b").err


def test_class_names_that_a_stranger_chose_are_not_read(received: Received, gen: Cli) -> None:
    private = received.folder / "private.txt"
    private.write_text("".join(f"secret {number}\n" for number in range(10)))
    config = received.run / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["teacher"]["arch"] = FACTORY
    values["emit"]["class_names"] = str(private)
    config.write_text(yaml.safe_dump(values))
    words = ["emit", "--run", received.run, "--arch", FACTORY, "--per-class", 1, "--out", "more", "--no-report"]
    done = gen(*words)
    assert done.code == 2
    assert "then add --class-names FILE" in done.err
    assert not Path("more").exists()
    done = gen(*words, "--class-names", private)
    assert done.code == 0, done.err


@pytest.mark.parametrize("arch", ["evil\0.py:net", "x" * 5000 + "/e.py:net", "evil.py", "./", ":", "\x1b[2J/e.py:net"])
def test_odd_names_are_refused_in_a_sentence(arch: str, received: Received, finetune: Cli) -> None:
    received.name(arch)
    done = finetune("evaluate", "--student", received.student, "--val", received.teacher.val)
    assert done.code == 2
    assert "nothing of that file was run" in done.err
    assert "\x1b" not in done.err
    assert "\0" not in done.err


def test_a_run_is_not_resumed_with_other_weights(own: Path, digits_teacher: DigitsTeacher, gen: Cli) -> None:
    state = {name: 2 * value for name, value in load_file(digits_teacher.weights).items()}
    save_file(state, "other.safetensors")
    done = gen("train", "--out", own, "--resume", "--weights", "other.safetensors")
    assert done.code == 2
    assert "--weights: other.safetensors contradicts the run" in done.err
    shutil.copy(digits_teacher.weights, "copy.safetensors")
    done = gen("train", "--out", own, "--resume", "--weights", "copy.safetensors", "--no-report")
    assert done.code == 0, done.err
