"""Text from files on a report's page: text of strangers stays text, and values may be anything."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from clusterq_report.charts.bars import Bars, bar_chart, grid_histogram, interval_chart
from clusterq_report.charts.confusion_matrix import heat_map
from clusterq_report.charts.lines import Line, line_chart
from clusterq_report.charts.svg import tag
from clusterq_report.html.blocks import Block, Code, Figure, Folded, Heading, Paragraph, Picture, Strips, Table
from clusterq_report.html.page import Remark, Report, Section
from clusterq_report.html.text import clean
from clusterq_report.pages.accuracy import overall
from clusterq_report.pages.comparison import written
from clusterq_report.run_data import RunData, pair, real, reals, rows, section
from tests.e2e.page import UNBROKEN

EVIL = "<script>alert(1)</script>\"'&\x00\x1b\ud800\u202e"


def test_what_a_file_holds_may_be_anything() -> None:
    hostile = json.loads("[1e999, -1e999, NaN, 1" + "0" * 400 + ', true, "7", null, [], {}]')
    assert [real(value) for value in hostile] == [None] * 9
    assert reals([1, 2.5, "x"]) == [1.0, 2.5, None]
    assert reals({"a": 1}) == rows("no list") == rows([1, []]) == []
    assert pair([1, 2]) == (1.0, 2.0)
    assert pair([1]) is pair([1, None]) is pair("12") is None
    assert section([1], "a") == section({"a": 5}, "a", "b") == {}
    assert section({"a": {"b": {"c": 1}}}, "a", "b") == {"c": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("91.17 ± 0.01", (91.17, (91.16, 91.18))),
        ("0.85 [0.60, 1.10]", (0.85, (0.6, 1.1))),
        ("-0.10 [-0.30, 0.10]", (-0.1, (-0.3, 0.1))),
        ("12", (12.0, None)),
        (3.5, (3.5, None)),
        ("", None),
        ("9" * 5000, None),
        (EVIL, None),
        ([1], None),
    ],
)
def test_figures_of_a_table_are_read_back(text: object, expected: object) -> None:
    assert written(text) == expected


class Elements(HTMLParser):
    """The tags of a page, and the text of its cells and figures."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag not in {"iframe", "object", "link", "base"}
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_saying(text: str) -> str:
    """A page with this text in every place that takes text."""
    drawn = [
        line_chart([Line(text, [(0, 1.0)]), Line("b", [(0, 2.0)])], title=text, x_label=text, y_label=text, notes=[(0, text)]),
        bar_chart([Bars(text, [1.0])], [text, text], title=text, x_label=text),
        interval_chart([(text, 1.0, (0.0, 2.0))], title=text, x_label=text, zero_label=text),
        heat_map([[1, 1], [0, 1]], [text, text], title=text),
        grid_histogram(-2, 1, 0, [1.0], [], text),
        tag("p", text, title=text),
    ]
    blocks: list[Block] = [Figure(text, chart, text) for chart in drawn]
    picture = Picture(Markup("data:image/png;base64,"), text, 1, 1)
    blocks += [Table([text], [[text]]), Code(text), Paragraph(text), Strips([(text, picture)])]
    section = Section("a", text, [Folded(text, blocks)])
    return Report(text, text, {text: text}, [Remark("warning", text)], [section], blocks).html()


PLAIN = page_saying("plain")
INLINE_CODE = re.compile("(?<!<pre>)<code>([^<]*)</code>")
HOSTILE = ["</script>", "{{ 7*7 }}", "{% raw %}", "\"'><b>", "\u202efdp.exe", "]]>", "<!--", "&lt;", EVIL]


@settings(max_examples=25)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8)), min_size=1, max_size=4).map("".join))
@example("".join(HOSTILE))
@example("`<b>` --lr '<b>' clusterq-gen `a --b`")
@example("a\rb\r\nc")
def test_text_of_strangers_is_text(text: str) -> None:
    """For any name of a class, a layer or a setting, the page has the same elements, and shows that very name."""
    page = page_saying(text)
    page.encode()
    ET.fromstring(page.partition("\n")[2])
    poisoned, plain = Elements(), Elements()
    # Options and code within a sentence have an element of their own, without attributes but this one.
    poisoned.feed(INLINE_CODE.sub(r"\1", UNBROKEN.sub(r"\1", page)))
    plain.feed(PLAIN)
    assert poisoned.tags == plain.tags
    title = ET.fromstring(page.partition("\n")[2]).find("./head/title")
    assert title is not None
    # XML reads every kind of line end as \n.
    assert (title.text or "") == clean(text).replace("\r\n", "\n").replace("\r", "\n")
    assert not {"\x00", "\x1b", "\u202e"} & set(page)


def test_long_text_is_cut() -> None:
    assert len(clean("x" * 10_000)) < 2100


def test_figures_of_two_classes_stand_below_those_of_all(tmp_path: Path) -> None:
    binary = {"auroc": 0.91234, "auroc_interval": [0.9, 0.92], "sensitivity": 75.0, "sensitivity_interval": [60.25, 85.5]}
    student = {"top1": 80.0, "balanced_accuracy": 77.5, "binary": binary | {"specificity": None, "specificity_interval": EVIL}}
    (tmp_path / "result.json").write_text(json.dumps({"student": student}))
    page = Report("t", "l", {}, [], [Section("a", "t", overall(RunData(tmp_path, "fine-tuning")), opened=True)]).html()
    for figure in ("0.9123", "0.9000 to 0.9200", "75.00 %", "60.25 to 85.50", "77.50 %", "Class 1 is the positive one"):
        assert figure in page
    assert "alert(1)" not in page, "an interval that is none is a dash"
    (tmp_path / "result.json").write_text(json.dumps({"student": student | {"binary": None}}))
    blocks = overall(RunData(tmp_path, "fine-tuning"))
    assert not [block for block in blocks if isinstance(block, Heading)]
