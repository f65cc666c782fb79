"""Hooks of mkdocs: pages that are made when the site is built and lie nowhere, so that nothing is said twice or goes stale.

The front page is README.md; CONTRIBUTING.md and CHANGELOG.md are pages; each program has one, made from its command line.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from reference import reference

from clusterq_finetune.cli import app as finetune_app
from clusterq_gen.cli import app as gen_app

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PROGRAMS = {"clusterq-gen": gen_app, "clusterq-finetune": finetune_app}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=moved((ROOT / source).read_text(encoding="utf-8"))))
    for program, app in PROGRAMS.items():
        files.append(File.generated(config, f"commands/{program}.md", content=reference(program, app)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Without the marks that tell the tests which blocks of code they cannot run."""
    return re.sub(r"^<!-- not run: .*? -->\n", "", markdown, flags=re.MULTILINE | re.DOTALL)


def moved(text: str) -> str:
    """A file of the project's root with its links as they are from within docs/."""
    for source, page in PAGES.items():
        text = text.replace(f"]({source}", f"]({page}")
    return text.replace("](docs/", "](").replace('src="docs/', 'src="')
