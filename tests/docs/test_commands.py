"""No page names a command, an option or a value that the programs do not know."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.docs.blocks import LANGUAGES, PAGES, PROGRAMS, ROOT, Block, blocks, calls, command_lines, inline_code
from tests.docs.commands import every_flag, parse

# Options of other programs that the pages speak of.
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
OTHERS = {
    "--nproc-per-node",
    "--nnodes",
    "--rdzv-id",
    "--rdzv-backend",
    "--rdzv-endpoint",
    "--requeue",
    "--no-deps",
    "--strict",
    "--gpus",
    "--ipc",
    "--user",
}


@cache
def known_flags() -> frozenset[str]:
    """Flags that a page may name."""
    return every_flag() | OTHERS | tool_flags()


def tool_flags() -> set[str]:
    """Options of the maintainers' own tools: spelled out for argparse, parameters' names for typer."""
    flags = set()
    for path in (ROOT / "tools").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        flags |= set(re.findall(r'"(--[a-z][a-z0-9-]*)"', text))
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        names = {word.arg for node in functions for word in (*node.args.args, *node.args.kwonlyargs)}
        flags |= {f"--{name.replace('_', '-')}" for name in names}
    return flags


def problems(block: Block) -> list[str]:
    """Problems of a block's commands, each with its place. Drawings and printed lines can only name flags."""
    if block.language == "text":
        return [f"{block.place}: {flag}" for flag in FLAG.findall(block.text) if flag not in known_flags()]
    wrong = [(line, problem) for line in command_lines(block.text) if (problem := problem_of(line))]
    return [f"{block.place}: {line}\n  {problem}" for line, problem in wrong]


def problem_of(line: str, *, may_be_part: bool = False) -> str:
    """The parsers' error for the first bad call in a line; empty where there is none. A part of a command may lack something."""
    for program, arguments in calls(line):
        try:
            parse(program, arguments)
        except ValidationError as error:
            return str(error)
        except Exception as error:
            name = type(error).__name__
            # --help and --version say something and leave.
            if name != "Exit" and not (may_be_part and name in {"MissingParameter", "NoArgsIsHelpError"}):
                return f"{name}: {getattr(error, 'message', error)}"
    return ""


def test_no_page_holds_the_marks_of_a_merge() -> None:
    marks = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
    assert [page for page in (*PAGES, ROOT / "CHANGELOG.md") if marks.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_blocks_exist(page: Path) -> None:
    listed = blocks(page)
    assert not [block.place for block in listed if block.language not in LANGUAGES], f"languages are {LANGUAGES}"
    text = page.read_text(encoding="utf-8")
    fences = len(re.findall(r"^[ >\t]*(?:```|~~~)", text, re.MULTILINE))
    assert fences == 2 * len(listed), "a fence that is indented or of another kind is read by nobody"
    marks = len(re.findall("^<!-- not run:", text, re.MULTILINE))
    assert marks == sum(block.not_run is not None for block in listed), "a mark stands before its block"
    assert not [problem for block in listed for problem in problems(block)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_in_prose_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not sorted({flag for span in inline_code(text) for flag in FLAG.findall(span)} - known_flags())
    started = [span for span in inline_code(text) if span.split()[0] in PROGRAMS and not re.search(r"\||\.\.\.", span)]
    assert not [(span, problem) for span in started if (problem := problem_of(span, may_be_part=True))]


@pytest.mark.parametrize(
    "line",
    [
        "clusterq-gen train --arch resnet18 --alpha-bsn 1",
        "clusterq-gen trian --arch resnet18",
        "clusterq-gen train --arch resnet18 --epochs many",
        "clusterq-gen train --arch resnet18 --bits w9a4",
        "clusterq-gen train --arch resnet18 --method magic",
        "clusterq-finetune shards subset out/ --per-clas 5 --out small/",
        "torchrun --nproc-per-node 8 -m clusterq_gen -- emit --rnu out/",
        "cd out && clusterq-finetune compare --out table.md",
        "clusterq-finetune --shard out/ --json 2> log.txt | tail -n 1 > result.json",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    page = f"Some text.\n\n<!-- not run: it is wrong -->\n```bash\nmkdir out\n{line}  # a comment\n```\n"
    (block,) = blocks(ROOT / "README.md", page)
    assert (block.line, block.language, block.not_run) == (5, "bash", "it is wrong")
    assert len(problems(block)) == 1


def test_lines_are_read_as_a_shell_reads_them() -> None:
    assert command_lines("a \\\n  b  # why\n\n# no\nc\n") == ["a    b  # why", "c"]
    assert calls("python -m clusterq_gen train --out 'a b' # --flag") == [("clusterq-gen", ["train", "--out", "a b"])]
    assert inline_code("`--this-one` and --bare\n```bash\n`--fenced`\n```\n") == ["--this-one"]


def test_a_wrong_flag_is_found_in_prose_and_in_drawings() -> None:
    (block,) = blocks(ROOT / "README.md", "```text\nclusterq-gen train --alpha-bsn 1 --alpha-bns 1\n```\n")
    assert problems(block) == ["README.md:2: --alpha-bsn"]
