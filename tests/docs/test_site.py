"""The documentation as a site: it builds without a warning, says all that `--help` says, and asks nothing of any network."""

import os
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import pytest
from markdown_it import MarkdownIt

import clusterq
from tests.browser import Browser
from tests.docs.blocks import PAGES, ROOT
from tests.docs.commands import every_command, every_flag

pytest.importorskip("mkdocs", reason="the site is built by mkdocs-material, the extra `docs`")


def build(site: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", root / "mkdocs.yml", "--site-dir", site]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, cwd=root, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """A page's text, and the addresses that a browser fetches to show it."""

    FETCHED: ClassVar = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(self.FETCHED.get(tag, ""))
        if address:
            self.fetched.append(address)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_fetches_nothing_from_outside(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    addresses = {address for page in pages for address in Page(page).fetched}
    assert any(address.endswith(".js") for address in addresses)
    assert not sorted(address for address in addresses if re.match(r"(\w+:)?//", address))
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]*", styles)
    # The theme's own script would fetch these where a page draws with mermaid or a browser lacks something; no page does.
    assert not [page.name for page in pages if 'class="mermaid"' in page.read_text(encoding="utf-8")]


def test_every_command_and_option_has_its_place(site: Path) -> None:
    pages = {
        program: (site / "commands" / f"{program}.html").read_text("utf-8") for program in ("clusterq-gen", "clusterq-finetune")
    }
    shown = {program: " ".join(Page(site / "commands" / f"{program}.html").text.split()) for program in pages}
    named = set()
    for path, context in every_command():
        page, text = pages[path.split()[0]], shown[path.split()[0]]
        assert path in text
        for parameter in context.command.get_params(context):
            if getattr(parameter, "hidden", False):
                continue
            anchor = f"{path}-{parameter.name}".lower().replace(" ", "-").replace("_", "-")
            assert f'id="{anchor}"' in page, f"{path}: {parameter.name}"
            help_text = " ".join((parameter.help or "").split())
            assert help_text in text, f"{path}: {parameter.name}"
            named |= {word for word in parameter.opts if word.startswith("--")}
    assert {"--alpha-fda", "--bits", "--reconstruct", "--min-confidence", "--opset"} <= named <= every_flag()


def test_the_library_has_its_names_and_no_others(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    assert sorted(re.findall(r'<h3 id="clusterq\.(\w+)"', page)) == sorted(clusterq.__all__)
    shown = " ".join(Page(site / "api.html").text.split())
    for setting in (*clusterq.Recipe.model_fields.values(), *clusterq.QuantConfig.model_fields.values()):
        assert (setting.description or "").replace("`", "") in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_parts_that_commonmark_sees(site: Path, page: Path) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    name = {"README": "index", "CONTRIBUTING": "contributing", "SECURITY": "security"}.get(page.stem, page.stem)
    html = (site / f"{name}.html").read_text(encoding="utf-8").split("<article", 1)[1].split("</article>", 1)[0]
    for tag, kind in (
        ("table", "table_open"),
        ("ul", "bullet_list_open"),
        ("ol", "ordered_list_open"),
        ("li", "list_item_open"),
        ("pre", "fence"),
    ):
        expected = sum(token.type == kind for token in tokens)
        assert len(re.findall(rf"<{tag}[ >]", html)) == expected, f"{page.name}: {tag}"


def test_in_a_browser(site: Path, tmp_path: Path) -> None:
    browser = Browser(tmp_path)
    browser.open_something_that_asks(tmp_path)
    assert browser.asked(), "a page that asks is found out"
    for name in ("index", "how-it-works", "faq", "commands/clusterq-gen", "api"):
        shown = browser.open(site / f"{name}.html", "--dump-dom", "--virtual-time-budget=3000")
        assert not browser.asked()
        assert 'class="js"' in shown or " js" in shown.split("<head", 1)[0], "the theme's script has run"


@pytest.mark.parametrize(
    ("words", "pages"),
    [
        ("--layer-bits", ["bits.html", "commands/clusterq-finetune.html#clusterq-finetune-panel-quant"]),
        ("--alpha-fda", ["commands/clusterq-gen.html#"]),
        ("absentword", []),
    ],
)
def test_the_search_works_from_disk_and_finds_options(site: Path, tmp_path: Path, words: str, pages: list[str]) -> None:
    browser = Browser(tmp_path)
    shown = browser.open(site / "faq.html", "--dump-dom", "--virtual-time-budget=8000", query=f"?q={words}")
    assert not browser.asked()
    links = re.findall(r'<a href="([^"]*)"[^>]*class="md-search-result__link"', shown)
    results = [re.sub(r"\?h=[^#]*", "", unescape(link)).removeprefix(f"{site.as_uri()}/") for link in links]
    assert bool(results) == bool(pages)
    for page in pages:
        assert [link for link in results if link.startswith(page)], results


def test_marks_for_the_tests_are_not_shown(site: Path) -> None:
    assert "<!-- not run:" in (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    assert not [page.name for page in site.rglob("*.html") if "<!-- not run" in page.read_text(encoding="utf-8")]


def test_what_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    """A page in no list, a link to no page, and one to no heading: each is a warning, and any warning ends the build."""
    for name in ("docs", "tools/docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "extra.md").write_text("# In no list")
    with (tmp_path / "docs" / "faq.md").open("a", encoding="utf-8") as file:
        file.write("\n[nowhere](absent.md)\n\n[nowhere](start.md#absent)\n")
    done = build(tmp_path / "site", tmp_path)
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 3
    for words in ("extra.md", "'absent.md'", "#absent"):
        assert words in done.stderr
