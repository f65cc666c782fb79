"""Pages of runs, from folders that hold no more than what each test is about."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from clusterq_report.html.blocks import Block, Code, Figure, Folded, Paragraph, Table
from clusterq_report.html.page import Report, Section
from clusterq_report.pages.draw import draw_report
from clusterq_report.pages.finetuned_run import finetuning_report
from clusterq_report.pages.generator_run import generator_report
from clusterq_report.run_data import RunData

RECIPE = {"recipe": "fast", "epochs": 1, "temperature": 20.0, "kl_weight": 20.0}
MODEL = {"top1": 90.0, "images": 1, "unreadable": ["a.png"]}


def page_of(folder: Path, records: list[dict[str, Any]], **files: Any) -> Report:
    """The page of a fine-tuning with these records and JSON files."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"quant": {"bits": "w4a4"}, "recipe": RECIPE, "shards": "absent"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return finetuning_report(RunData.open(folder))


def command(page: Report) -> str:
    (line,) = [block.text for block in page.headline if isinstance(block, Code)]
    return line


def test_the_next_command_is_the_one_that_is_missing(tmp_path: Path) -> None:
    assert command(page_of(tmp_path, [{"step": 0}])) == "clusterq-finetune --config config.yaml --out . --resume"
    assert "evaluate --student . --val" in command(page_of(tmp_path, [], result={"student": {}}))
    evaluated = page_of(tmp_path, [], result={"teacher": MODEL, "student": MODEL})
    assert command(evaluated) == "clusterq-finetune export --student . --out model.onnx"
    (tmp_path / "config.yaml").write_text("generator: {}\n")
    assert command(generator_report(RunData.open(tmp_path))) == "clusterq-gen train --out . --resume"


def test_a_page_beside_the_run_names_its_folder_and_one_within_does_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    page_of(run, [{"step": 0}])
    for page, said in (
        (None, "in the run's folder:"),
        (run / "mine.html", "in the run's folder:"),
        (tmp_path / "mine.html", "in the run's folder, run:"),
    ):
        assert said in draw_report(run, page).read_text().replace("&#39;", "'"), page


def test_one_is_singular(tmp_path: Path) -> None:
    sentences = [remark.sentence for remark in page_of(tmp_path, [{"step": 0}]).remarks]
    assert "The run is not finished: 1 step is on record. resume goes on." in sentences
    evaluated = page_of(tmp_path, [{"step": 0, "loss/ce": None}], result={"teacher": MODEL, "student": MODEL})
    sentences = [remark.sentence for remark in evaluated.remarks]
    assert "1 real image could not be read and left out of the figures." in sentences
    assert "1 loss value is not finite: the training went astray; try a smaller lr." in sentences
    assert evaluated.lead.endswith("on 1 real image.")
    assert evaluated.tiles["Recipe"] == "fast, 1 epoch"


def test_a_kl_is_negative_by_a_defect_alone(tmp_path: Path) -> None:
    # Rounding: 1e-7 times T² = 400, and times the weight 20 in the loss.
    rounded = [{"step": 0, "loss/kl": -8e-4, "loss/ce": 1.0}, {"step": 0, "epoch": 0, "heldout/kl": -4e-5}]
    page = page_of(tmp_path, rounded)
    assert not [remark for remark in page.remarks if "KL" in remark.sentence]
    learning = next(section for section in page.sections if section.anchor == "learning")
    drawings = [block.drawing for block in learning.blocks if isinstance(block, Figure)]
    assert any("kl: 0 at 0" in drawing for drawing in drawings)
    assert not any("-" in title for drawing in drawings for title in drawing.split("<title>")[1:] if title.startswith("kl"))
    page = page_of(tmp_path, [{"step": 0, "epoch": 0, "heldout/kl": -0.3}])
    assert [remark.level for remark in page.remarks if "A KL divergence of -0.300 is on record" in remark.sentence] == [
        "warning"
    ]


def test_terms_of_a_loss_are_explained(tmp_path: Path) -> None:
    page = page_of(tmp_path, [{"step": 0, "loss/ce": 1.0, "loss/mine": 2.0}])
    learning = next(section for section in page.sections if section.anchor == "learning")
    (legend,) = [block for block in learning.blocks if isinstance(block, Folded)]
    (table,) = legend.blocks
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["ce", "mine"]
    assert table.rows[1][1] == "a term of the method's own"


def test_size_and_speed_of_an_exported_file(tmp_path: Path) -> None:
    latency = [{"batch": 1, "milliseconds": {"file": [1.5, 1.4, 1.6]}, "ratio": [0.5, 0.4, 0.6]}, {"batch": 16}]
    tiles = page_of(tmp_path, [], benchmark={"bytes": {"file": 123_456}, "latency": latency}).tiles
    assert tiles["Exported file"] == "123 kB"
    assert tiles["Time of a batch of 1"] == "1.50 ms, 0.50 of float's, in ONNX Runtime on the CPU"
    made_for = {"target": "openvino (checked with openvino 2026.4.1)"}
    tiles = page_of(tmp_path, [], benchmark={"file": made_for, "latency": latency}).tiles
    assert tiles["Time of a batch of 1"].endswith("in ONNX Runtime on the CPU, not in openvino")
    assert not {"Exported file", "Time of a batch of 1"} & page_of(tmp_path / "other", []).tiles.keys()


def test_options_stay_in_one_piece_and_code_is_code(tmp_path: Path) -> None:
    """Also where a text is a stranger's: what it holds is still escaped. A command keeps its own backticks."""
    page = page_of(tmp_path, [], result={"student": {}})
    html = page.html()
    assert "clusterq-finetune</span> evaluate --student" not in html
    assert '<span class="whole">--student</span> .' in html
    (sentence,) = [remark.sentence for remark in page.remarks if remark.sentence.startswith("No real image")]
    assert "`" in sentence
    assert "`" not in html.split("<body>")[1].split("<script>")[0]
    shown = show(Paragraph("`--lr` <b>"), Code("`x` --lr '<b>'"))
    assert '<p><code><span class="whole">--lr</span></code> &lt;b&gt;</p>' in shown
    assert '<code>`x` <span class="whole">--lr</span> &#39;&lt;b&gt;&#39;</code>' in shown


def test_a_page_elsewhere_names_the_folder_that_it_is_about(tmp_path: Path) -> None:
    """As that of quantize does: its commands are for the folder of the run, its table of layers has the page's name."""
    run = tmp_path / "model-work" / "student"
    run.parent.mkdir()
    costed = [{"layer": "conv", "weights": 10, "multiply_adds": 640}]
    file = {"path": "/home/me/it's model.onnx"}
    page_of(run, [], result={"teacher": MODEL, "student": MODEL}, analysis={"layers": costed}, benchmark={"file": file})
    html = draw_report(run, tmp_path / "model.html").read_text()
    words = re.sub(r"<[^>]+>", "", html)
    assert "In the run&#39;s folder, model-work/student, from the saved settings" in words
    assert "model-layers.csv beside this page" in words
    assert (tmp_path / "model-layers.csv").is_file()
    assert "doc_string)&#39; &#39;it&#39;&#34;&#39;&#34;&#39;s model.onnx&#39;" in words
    assert "export --student" not in words, "the file is there"
    (run.parent / "else").mkdir()
    assert "In the run&#39;s folder, .../student, from" in draw_report(run, run.parent / "else" / "x.html").read_text()
    own = draw_report(run).read_text()
    assert "In the run&#39;s folder, from the saved settings" in own
    assert "layers.csv beside this page" in own


def test_chosen_bits_are_shown(tmp_path: Path) -> None:
    layer = {
        "name": "conv",
        "weights": 100,
        "weight_bits": 2,
        "input_bits": 8,
        "given": False,
        "weight_kl": {"2": 0.5, "8": 0.01},
    }
    given = {**layer, "name": "head", "weight_bits": 5, "given": True, "weight_kl": {}}
    tried = [{"average_bits": 3.5, "bytes": 12_000, "estimated_drop": 0.8}]
    choice = {"aim": {"max_drop": 1.0, "sensitivity_images": 256}, "average_weight_bits": 3.5, "bytes": 12_000}
    page = page_of(
        tmp_path, [], result={"bits": {**choice, "layers": [layer, given], "tried": tried}, "student": MODEL, "teacher": MODEL}
    )
    assert page.tiles["Bits chosen, weights"] == "3.50 on average (2 to 5)"
    assert "Bits" not in page.tiles
    assert page.title == "a teacher at 3.50 bits of weights on average"
    assert "was brought to 3.50 bits of weights on average from" in page.lead
    (section,) = [section for section in page.sections if section.title == "Choice of bits"]
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [list(row) for row in tables[0].rows] == [["3.50", "12.0 kB", "0.800"]]
    assert [list(row) for row in tables[1].rows] == [
        ["1", "conv", "chosen", "100", "2", "8", "0.500", "0.0100"],
        ["2", "head", "given", "100", "5", "8", "–", "–"],
    ]
    assert "Asked for: the smallest student that loses at most 1.0 points." in section.blocks[0].text
    plain = page_of(tmp_path / "plain", [], result={"student": MODEL})
    assert plain.tiles["Bits"] == "w4a4"
    assert not [section for section in plain.sections if section.title == "Choice of bits" and section.blocks]


def show(*blocks: Block) -> str:
    return Report("title", "lead", {}, [], [Section("a", "A", blocks)]).html()
