"""Texts name settings: as arguments in Python, as flags on the command line, and never what a stranger's text says."""

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import AliasChoices, Field

import clusterq
import clusterq_common
import clusterq_finetune
import clusterq_gen
import clusterq_report
from clusterq_cli.app import App
from clusterq_cli.flags import flag_of, with_flags
from clusterq_cli.main import run_guarded
from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import in_a_command, setting_name, settings_renamed, settings_spelled_by
from clusterq_common.settings import Settings, merged, under_present_names
from tests.conftest import _invoke

# What a text could be taken apart by: names in backticks, flags, and characters that no name has.
STRANGE = [
    "`overwrite`",
    "--overwrite",
    "{setting_name('overwrite')}",
    "overwrite=1",
    "\x00overwrite\x01",
    "\ufdd0overwrite\ufdd1",
]


class Made(Settings):
    """Settings of a made-up command."""

    store_logits: bool = Field(True, description="store logits", json_schema_extra={"flag": "--logits/--no-logits"})
    crop_pct: float = Field(
        0.9,
        le=1,
        description="crop, see `rate=low` and `store_logits`",
        validation_alias=AliasChoices("crop_pct", "crop_share"),
    )


class Whole(Settings):
    """Contents of that command's configuration file."""

    made: Made = Made()


app = App()
values_given: list[dict[str, Any]] = []


@app.command()
@with_flags({"made": Made}, typer.Option)
def only(flags: dict[str, dict[str, Any]], path: str = "x") -> None:
    """Refuse whatever it is given."""

    def run() -> None:
        values_given.append(flags)
        Made.validated(flags.get("made", {}))
        raise refusal(path)

    run_guarded(run)


def refusal(path: str) -> ClusterqError:
    several = f"{setting_name('in_channels')}, {setting_name('integers', 'int8')} or {setting_name('store_logits', False)}"
    return ClusterqError(f"{path} does not fit; check {several}{in_a_command(' and help')}.", setting="input_size")


@pytest.mark.parametrize("path", ["net.pth", *STRANGE])
def test_a_text_names_settings_and_leaves_what_it_quotes(path: str) -> None:
    quoted = str(ClusterqError(path))
    assert str(refusal(path)) == f"input_size: {quoted} does not fit; check in_channels, integers=int8 or store_logits=False."
    assert refusal(path).setting == "input_size"
    assert refusal(path).text.startswith(quoted)
    done = _invoke(app, ["--path", path] if not path.startswith("-") else [f"--path={path}"])
    assert done.code == 2
    expected = f"Error: --input-size: {quoted} does not fit; check --in-channels, --integers int8 or --no-logits and help.\n"
    assert done.err == expected
    assert setting_name("input_size") == "input_size", "the command has ended"


def test_programs_without_commands_of_their_own_name_flags_too(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise refusal("net.pth")

    with pytest.raises(SystemExit):
        run_guarded(run)
    assert capsys.readouterr().err.startswith("Error: --input-size: net.pth does not fit; check --in-channels, --integers int8")


def test_an_error_crosses_processes_as_it_is() -> None:
    with settings_spelled_by(flag_of):
        sent = pickle.dumps(refusal("net.pth"))
    received = pickle.loads(sent)
    assert str(received).startswith("--input-size: net.pth")
    assert (received.setting, received.text) == ("input_size", str(received).removeprefix("--input-size: "))


def test_shared_code_speaks_of_the_setting_that_it_is_called_for() -> None:
    with settings_renamed({"input_size": "other_size"}):
        assert str(refusal("x")).startswith("other_size: x does not fit; check in_channels,")
        with settings_spelled_by(flag_of), settings_renamed({"input_size": "other_size"}):
            assert str(refusal("x")).startswith("--other-size: x")


def test_flags_of_settings() -> None:
    command = typer.main.get_command(app)
    params = command.params
    assert [flag_of("store_logits", value, params) for value in (None, True, False)] == ["--logits", "--logits", "--no-logits"]
    assert flag_of("path", "FILE", params) == "--path FILE"
    assert [flag_of("cuda_graphs", value) for value in (None, True, False)] == ["--cuda-graphs"] * 2 + ["--no-cuda-graphs"]


def test_former_names_are_read_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert Made(crop_share=0.5).crop_pct == Made(crop_pct=0.5).crop_pct == 0.5
    assert Made(crop_pct=0.5).model_dump() == {"store_logits": True, "crop_pct": 0.5}
    done = _invoke(app, ["--help"])
    assert "--crop-pct" in done.out
    assert "share" not in done.out
    assert "crop, see --rate low and --store-logits" in " ".join(done.out.replace("│", " ").split())
    _invoke(app, ["--crop-share", "0.5"])
    assert values_given[-1] == {"made": {"crop_pct": 0.5}}
    assert "--crop-pct: input should be less than or equal to 1" in _invoke(app, ["--crop-share", "2"]).err
    both = _invoke(app, ["--crop-share", "0.5", "--crop-pct", "0.6"])
    assert both.code == 2
    assert "--crop-share: extra inputs" in both.err


def test_what_is_given_now_goes_on_top_of_a_file_of_an_earlier_version() -> None:
    saved = {"made": {"crop_share": 0.5, "store_logits": False}}
    whole = merged(under_present_names(Whole, saved), {"made": {"crop_pct": 0.7}})
    assert Whole.validated(whole).made == Made(crop_pct=0.7, store_logits=False)
    assert saved == {"made": {"crop_share": 0.5, "store_logits": False}}


# Files whose flags are no settings in a text: why they may have them.
HAVE_FLAGS = {
    "shards/card.py": "the commands on a dataset card",
    "pages/provenance.py": "the commands that repeat a run, and the words of the one that started it",
    "html/redact_paths.py": "words of a recorded command line",
    "run/environment.py": "git's own flags",
    "clusterq_common/errors.py": "its docstring shows both spellings",
    "clusterq_common/setting_names.py": "its docstring shows both spellings",
    "html/text.py": "it keeps options in one piece, and its docstring shows one",
}
# A flag, or the dashes before one that is put together.
FLAG = re.compile(r"(?<![\w-])--(?:[a-z]|$)")
COMMENT = re.compile(r"#.*(?<![\w-])--[a-z]")
# How an option with an opposite is spelled (`json_schema_extra`).
PAIR = re.compile(r"--[a-z-]+/--[a-z-]+")
# The library, and what `import clusterq` reaches of fine-tuning.
PACKAGES = [Path(package.__file__ or "").parent for package in (clusterq_common, clusterq_report, clusterq)]
REACHED = [Path(clusterq_finetune.__file__ or "").parent / name for name in ("data", "recipes", "student.py")]


def sources() -> Iterator[Path]:
    for place in (*PACKAGES, *REACHED):
        yield from [place] if place.is_file() else sorted(place.rglob("*.py"))
    yield REACHED[0].parent / "evaluation" / "evaluate.py"


def test_no_text_below_the_command_line_has_a_flag() -> None:
    flags, looked_at = [], 0
    for path in sources():
        if f"{path.parent.name}/{path.name}" in HAVE_FLAGS:
            continue
        text = path.read_text(encoding="utf-8")
        flags += [f"{path.name}: {line.strip()}" for line in text.splitlines() if COMMENT.search(line)]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                looked_at += 1
                if FLAG.search(node.value) and not PAIR.fullmatch(node.value):
                    flags.append(f"{path.name}:{node.lineno}: {node.value[:80]}")
    assert looked_at > 4000
    assert flags == []


# Modules of the programs that still spell flags by hand, below their command lines. The list only shrinks: write
# `ClusterqError(text, setting=...)` and `setting_name(...)` instead. Plans and budgets make command lines, whose words are flags.
SPELLED_BY_HAND = {
    "clusterq_gen/bank/config.py",
    "clusterq_gen/commands.py",
    "clusterq_finetune/benchmark/command.py",
    "clusterq_finetune/benchmark/float_export.py",
    "clusterq_finetune/commands.py",
    "clusterq_finetune/evaluation/evaluate_saved.py",
    "clusterq_finetune/export.py",
    "clusterq_finetune/figures/command.py",
    "clusterq_finetune/figures/draw.py",
    "clusterq_finetune/figures/sensitivity.py",
    "clusterq_finetune/figures/table.py",
    "clusterq_finetune/quantize/command.py",
    "clusterq_finetune/quantize/plan.py",
}
# A whole command line, in backticks, and the one flag that is no setting.
NO_SETTING = re.compile(r"`clusterq-[^`]*`|--help\b")


def test_texts_of_the_programs_spell_flags_by_hand_in_ever_fewer_modules() -> None:
    spelled = set()
    for program in (clusterq_gen, clusterq_finetune):
        root = Path(program.__file__ or "").parent
        for path in root.rglob("*.py"):
            within = path.relative_to(root)
            if within.parts[0] in {"cli", "cli.py"}:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
                if not PAIR.fullmatch(text) and FLAG.search(NO_SETTING.sub("", text)):
                    spelled.add(f"{root.name}/{within.as_posix()}")
    assert spelled - SPELLED_BY_HAND == set(), "name the setting"
    assert SPELLED_BY_HAND - spelled == set(), "nothing is left there: take it off the list"


def test_no_description_of_a_setting_has_a_flag() -> None:
    from clusterq_finetune.config import SECTIONS as FINETUNE
    from clusterq_gen.config import SECTIONS as GEN

    for model in {*FINETUNE.values(), *GEN.values()}:
        for name, field in model.model_fields.items():
            assert not FLAG.search(field.description or ""), f"{model.__name__}.{name}"
