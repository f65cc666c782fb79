"""Every page's blocks of code, run from top to bottom as a reader would; blocks that cannot run say why and are only parsed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clusterq_common.run.run_folder import CONFIG
from clusterq_common.settings import read_yaml
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_common.teacher.trust import remember_code
from tests import preloaded
from tests.conftest import DEMO, FACTORY, Cli, DigitsTeacher
from tests.docs.blocks import PAGES, PRINTS, PROGRAMS, Block, blocks, calls, command_lines

RUNNABLE = [page for page in PAGES if any(block.language != "text" and block.not_run is None for block in blocks(page))]


@pytest.fixture(scope="session")
def demo_left(tmp_path_factory: pytest.TempPathFactory, digits_teacher: DigitsTeacher) -> Path:
    """A checkout's folder after `python3 tools/dev.py demo`, as far as pages speak of it."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(DEMO, folder / "tools" / "demo", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "out-demo").mkdir()
    shutil.copy(digits_teacher.weights, folder / "out-demo" / "teacher.safetensors")
    # A link, because each page gets a copy of this folder, and the images are only read.
    (folder / "out-demo" / "val").symlink_to(digits_teacher.val)
    return folder


@pytest.fixture(scope="session")
def after_start(
    tmp_path_factory: pytest.TempPathFactory, demo_left: Path, digits_run: Path, digits_teacher: DigitsTeacher, finetune: Cli
) -> Path:
    """The same after the first page: a finished run in out/, a student in out/finetune-w4a4."""
    folder = tmp_path_factory.mktemp("after") / "checkout"
    shutil.copytree(demo_left, folder, symlinks=True)
    shutil.copytree(digits_run, folder / "out")
    flags = ("--bits", "w4a4", "--epochs", 1, "--val", digits_teacher.val)
    done = finetune("--shards", folder / "out", "--arch", FACTORY, *flags, "--out", folder / "out" / "finetune-w4a4")
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_page_runs(
    page: Path,
    demo_left: Path,
    request: pytest.FixtureRequest,
    gen: Cli,
    finetune: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = demo_left if page.name == "start.md" else request.getfixturevalue("after_start")
    folder = tmp_path / "checkout"
    shutil.copytree(left, folder, symlinks=True)
    for run in (folder / "out", folder / "out" / "finetune-w4a4"):
        if run.is_dir():  # the reader has started them here
            remember_code(run, TeacherConfig.validated(read_yaml(run / CONFIG)["teacher"]))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    reader = Reader({"clusterq-gen": gen, "clusterq-finetune": finetune})
    for block in blocks(page):
        reader.follow(block)
    reader.names.clear()  # in the thread that made them: OpenVINO's core unmaps that thread's signal stack


class Reader:
    """Someone who does what a page says, in the current folder."""

    def __init__(self, programs: dict[str, Cli]) -> None:
        self.programs = programs
        self.names: dict[str, Any] = {"__name__": "page"}
        self.printed = ""

    def follow(self, block: Block) -> None:
        """Run one block, or compare what the one before printed."""
        if block.language == "text":
            if block.title == PRINTS:
                missing = [line for line in block.text.splitlines() if masked(line) not in masked(self.printed)]
                assert not missing, f"{block.place}: not printed: {missing}; printed was:\n{self.printed}"
        elif block.not_run is not None:
            # What a page has the reader copy is copied, whatever the means.
            if block.text.startswith("cp -r "):
                self.shell(block.text, block)
        elif block.language == "python" and block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), self.names)
        else:
            self.printed = "".join(self.command(line, block) for line in command_lines(block.text))

    def command(self, line: str, block: Block) -> str:
        """clusterq's programs in this process, so that torch is not imported each time; everything else, and pipes, in a shell."""
        if line.split()[0] not in PROGRAMS or re.search(r"\s(?:\d?>|\||&&|;)", line):
            return self.shell(line, block)
        ((program, arguments),) = calls(line)
        done = self.programs[program](*smaller(arguments))
        assert done.code == 0, f"{block.place}: {line}\n{done.out}{done.err}"
        return done.out + done.err

    def shell(self, line: str, block: Block) -> str:
        programs = "".join(f'{name}() {{ "{sys.executable}" -m {name.replace("-", "_")} "$@"; }}\n' for name in PROGRAMS)
        words = ["bash", "-euo", "pipefail", "-c", programs + line]
        done = subprocess.run(words, capture_output=True, text=True, env=preloaded.environment(), check=False)
        assert done.returncode == 0, f"{block.place}: {line}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


def smaller(arguments: list[str]) -> list[str]:
    """The same command with 20 images of each class where it makes 100, and a fifth of the training steps or fewer."""
    fewer = [
        "20" if (flag, value) == ("--per-class", "100") else value
        for flag, value in zip(["", *arguments], arguments, strict=False)
    ]
    learns = arguments[:1] == ["train"] or arguments[:1] == ["--shards"]
    return fewer + (["--steps-per-epoch", "8"] if learns else [])


def masked(text: str) -> str:
    """Text without its numbers and its spacing: those depend on the machine."""
    return " ".join(re.sub(r"(?<![\w-])\d[\d.,]*", "0", text).split())


def test_what_a_page_says_is_compared_with_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = '```bash\nprintf "top-1 %s\\n" 93.5 >&2\n```\n```text title="prints"\ntop-1 12.0\n```\n```text title="prints"\ntop-5 1\n```\n'
    run, right, wrong = blocks(PAGES[0], page)
    reader = Reader({})
    reader.follow(run)
    reader.follow(right)
    with pytest.raises(AssertionError, match="top-5"):
        reader.follow(wrong)


@pytest.mark.parametrize("text", ["```bash\nfalse\n```\n", "```python\nassert not 1\n```\n"])
def test_a_block_that_fails_is_found(text: str) -> None:
    (block,) = blocks(PAGES[0], text)
    with pytest.raises(AssertionError):
        Reader({}).follow(block)
    (marked,) = blocks(PAGES[0], "<!-- not run: why -->\n" + text)
    Reader({}).follow(marked)
