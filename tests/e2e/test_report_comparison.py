"""The page that compares runs, and pages in a browser, also of a phone's width."""

import json
import re
from pathlib import Path

from tests.browser import Browser
from tests.conftest import Cli
from tests.e2e.page import Page

ROW = {"set": "clusterq", "bits": "w4a4", "seeds": 2, "images": 5120, "teacher": "92.02", "calibrated": "87.96 ± 0.07"}
ROW |= {"student": "91.17 ± 0.01", "below teacher [95 %]": "0.85 [0.60, 1.10]", "set, CPU min": "10.4"}
OTHER = ROW | {"set": "gdfq", "student": "91.00 ± 0.05", "below teacher [95 %]": "1.02 [0.77, 1.27]", "calibrated": ""}
COMPARISON = [ROW, OTHER]


def test_a_comparison(finetune: Cli, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps(COMPARISON))
    assert finetune("report", tmp_path).code == 0
    page = Page(tmp_path / "report.html")
    for shown in (
        "2 ways to a low-bit student",
        "Highest top-1: clusterq, 91.17 %",
        "Points below the teacher",
        "Rows of 2 runs",
    ):
        assert shown in page.text, shown
    (tmp_path / "table.json").write_text("[]")
    assert finetune("report", tmp_path).code == 0
    assert "The table has no row" in Page(tmp_path / "report.html").text


# Opens everything, and writes down the smallest text of a chart as a person sees it, in pixels; then sorts a table, if there is one.
MEASURE = """<script>
document.querySelectorAll("details").forEach(function (one) { one.open = true; });
var sizes = Array.from(document.querySelectorAll("svg text")).map(function (text) {
  var place = text.getScreenCTM();  // Some texts are turned.
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(place.a, place.b);
});
document.body.dataset.least = Math.min.apply(null, sizes);
document.body.dataset.wide = document.body.scrollWidth;
var table = document.querySelector("table.sortable");
if (table) {
  table.tHead.rows[0].cells[2].querySelector("button").click();
  document.body.dataset.sorted = Array.from(table.tBodies[0].rows).map(function (row) { return row.cells[2].textContent; }).join(" ");
}
</script></body>"""


def on_a_phone(page: Path, tmp_path: Path) -> dict[str, str]:
    """Return what MEASURE finds in a page that is 390 pixels wide, after checks of its text's size and its width."""
    browser = Browser(tmp_path)
    shown = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    # A browser's window is never as narrow as a phone, but below 50rem the layout is the same.
    narrow = tmp_path / "phone.html"
    narrow.write_text(shown.replace("<body>", '<body style="width:390px;margin:0">').replace("</body>", MEASURE))
    dumped = browser.open(narrow, "--dump-dom", "--window-size=500,900")
    body = dict(re.findall(r'data-(\w+)="([^"]*)"', dumped[dumped.index("<body") :].partition(">")[0]))
    assert float(body["least"]) >= 11
    assert float(body["wide"]) <= 390, "nothing makes the page wider than the phone"
    return body


def test_on_a_phone_text_is_legible_and_a_table_is_sorted(tuned: Path, tmp_path: Path) -> None:
    body = on_a_phone(tuned / "report.html", tmp_path)
    weights = [int(text.replace(",", "")) for text in body["sorted"].split()]
    assert len(weights) > 2
    assert weights == sorted(weights)


def test_on_a_phone_a_generators_page_is_legible(digits_run: Path, tmp_path: Path) -> None:
    on_a_phone(digits_run / "report.html", tmp_path)


def test_on_a_phone_a_comparison_is_legible(finetune: Cli, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps(COMPARISON))
    assert finetune("report", tmp_path).code == 0
    on_a_phone(tmp_path / "report.html", tmp_path)


def test_in_a_browser(tuned: Path, digits_run: Path, tmp_path: Path) -> None:
    browser = Browser(tmp_path)
    browser.open_something_that_asks(tmp_path)
    assert browser.asked(), "a page that asks is found out"
    for page in (tuned / "report.html", digits_run / "report.html"):
        shown = browser.open(page, "--dump-dom")
        assert not browser.asked()
        written = page.read_text()
        for element in ("<section", "<svg", "<img", "<tr"):
            assert shown.count(element) == written.count(element), f"{element} is understood as it was written"
    browser.open(tuned / "report.html", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000
