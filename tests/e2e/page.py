"""report.html as a test reads it."""

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

# Elements that a browser would fetch or run something for, and the attributes that name it.
FETCHING = {"iframe", "object", "embed", "link", "base", "form", "audio", "video", "source"}
LARGEST = 2_000_000
# Options within a text, which are no words of their own.
UNBROKEN = re.compile(r'<span class="whole">([^<]*)</span>')
# The only script: it sorts tables.
SORTING = (files("clusterq_report.html") / "templates" / "sort.js").read_text()


class Page(HTMLParser):
    """A page's text, its anchors and what it would fetch; fails on anything that runs, but for the script that sorts tables, or leaves the file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.images, self.ids, self.links = "", 0, set[str](), set[str]()
        self.open: list[str] = []
        self.scripts: list[str] = []
        raw = path.read_text(encoding="utf-8")
        assert raw.startswith("<!doctype html>")
        assert path.stat().st_size < LARGEST
        # Well-formed twice over: as XML, which forgives nothing, and as browsers read it.
        ET.fromstring(raw.partition("\n")[2])
        self.feed(UNBROKEN.sub(r"\1", raw))
        self.text = " ".join(self.text.split())
        assert self.links <= self.ids, "contents lead somewhere"
        assert self.scripts == [SORTING], "one script, and it is ours"
        digest = base64.b64encode(hashlib.sha256(SORTING.encode()).digest()).decode()
        assert f"script-src &#39;sha256-{digest}&#39;" in raw, "no other script would run"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        values = {name: value or "" for name, value in attrs}
        assert tag not in FETCHING
        assert tag != "script" or not attrs
        assert not [name for name in values if name.startswith("on")]
        for name in ("src", "href", "action", "data", "srcset", "xlink:href"):
            if name in values:
                assert values[name].startswith(("data:image/png;base64,", "#")), values[name][:80]
        assert "url(" not in values.get("style", "")
        self.images += tag == "img"
        self.ids |= {values["id"]} if "id" in values else set()
        self.links |= {values["href"][1:]} if "href" in values else set()

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
            assert "prefers-color-scheme:dark" in data
            assert "@media print" in data
            return
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
            return
        self.text += f" {data}"
