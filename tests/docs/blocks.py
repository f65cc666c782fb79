"""The blocks of code on a page of the documentation, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"clusterq-gen", "clusterq-finetune"}
MODULES = {"clusterq_gen": "clusterq-gen", "clusterq_finetune": "clusterq-finetune"}

# What a block is for. `text` is shown and nothing else, unless its title is PRINTS: then it is what the last block prints.
LANGUAGES = {"bash", "python", "text"}
PRINTS = "prints"
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->\s*", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: where its first line stands, its language, its title, its text, and why it is not run (None: it is)."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """All fenced blocks of a page in order."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8") if text is None else text)
    listed = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type != "fence":
            continue
        assert token.map is not None
        mark = NOT_RUN.fullmatch(before.content) if before is not None and before.type == "html_block" else None
        title = re.search(r'title="([^"]*)"', token.info)
        language = token.info.split()[0] if token.info.strip() else ""
        reason = mark["reason"] if mark else None
        listed.append(Block(page, token.map[0] + 2, language, title[1] if title else None, token.content, reason))
    return listed


def inline_code(text: str) -> list[str]:
    """The spans of code in a page's prose, headings and tables."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]


def command_lines(text: str) -> list[str]:
    """A shell block's commands: continued lines joined, comments and empty lines left out."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


def calls(line: str) -> list[tuple[str, list[str]]]:
    """The calls of clusterq's programs in a command line: by name, or `-m clusterq_gen -- ...` under python or torchrun."""
    listed = []
    for part in re.split(r"\s(?:\||\|\||&&|;)\s", line):
        words = shlex.split(re.sub(r"\s\d?>>?\s*(?:&\d|\S+)", " ", part), comments=True)
        for number, word in enumerate(words):
            if word in PROGRAMS:
                listed.append((word, words[number + 1 :]))
                break
            if word in MODULES:
                rest = words[number + 1 :]
                listed.append((MODULES[word], rest[1:] if rest[:1] == ["--"] else rest))
                break
    return listed
