"""Hooks of mkdocs: pages that are made when the site is built and lie nowhere, so that nothing is said twice or goes stale.

The front page is README.md; CONTRIBUTING.md, SECURITY.md and CHANGELOG.md are pages; each program has one, made from its command line, and the library
one, made from its docstrings.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from python_reference import python_reference
from reference import reference

from clusterq_finetune.cli.main import app as finetune_app
from clusterq_gen.cli import app as gen_app

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
BLOCKS = {"list", "table", "fence"}
PROGRAMS = {"clusterq-gen": gen_app, "clusterq-finetune": finetune_app}


def on_config(config: Any) -> Any:
    """The theme's plugin `offline` would fetch a helper for the search on pages opened from disk; docs/search.js has a part that does this."""
    config.extra["polyfills"] = ["search.js"]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=moved((ROOT / source).read_text(encoding="utf-8"))))
    for program, app in PROGRAMS.items():
        files.append(File.generated(config, f"commands/{program}.md", content=reference(program, app)))
    files.append(File.generated(config, "api.md", content=python_reference()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Without the marks that tell the tests which blocks of code they cannot run; with the empty lines that Python-Markdown wants."""
    return spaced(re.sub(r"^<!-- not run: .*? -->\n", "", markdown, flags=re.MULTILINE | re.DOTALL))


def on_page_content(html: str, **_: Any) -> str:
    """Names with hyphens in one piece: a browser would break the line behind the first hyphen of an option."""

    def whole(found: re.Match[str]) -> str:
        return re.sub(r"(?<![\w/-])-?-?\w[\w-]*-[\w-]+|--\w+", r'<span class="whole">\g<0></span>', found[0])

    return re.sub(r"(?<!<span></span>)<code>[^<]{1,80}</code>", whole, html)


def spaced(markdown: str) -> str:
    """The page with an empty line before each list, table and block of code that follows something else, and after each block of code.

    CommonMark, as which the pages are read where their source lies, needs none of these; Python-Markdown does.
    """
    lines: list[str] = []
    fenced, before = False, ""
    for line in markdown.split("\n"):
        kind = "" if fenced else kind_of(line, before)
        if kind != before and (kind in BLOCKS or before == "fence") and line and before:
            lines.append("")
        lines.append(line)
        fenced ^= line.startswith("```")
        before = "fence" if line.startswith("```") else kind
    return "\n".join(lines)


def kind_of(line: str, before: str) -> str:
    """Return the kind of a line outside blocks of code; empty for an empty line."""
    if before == "list" and line.startswith("  "):
        return "list"
    if re.match(r"([-*]|\d+\.) ", line):
        return "list"
    if line.startswith("```"):
        return "fence"
    return "table" if line.startswith("|") else "text" if line else ""


def moved(text: str) -> str:
    """A file of the project's root with its links as they are from within docs/."""
    for source, page in PAGES.items():
        text = text.replace(f"]({source}", f"]({page}")
    return text.replace("](docs/", "](").replace('src="docs/', 'src="')
