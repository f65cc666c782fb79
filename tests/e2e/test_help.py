"""Texts before anything runs: help, hints, versions, completion."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from clusterq_finetune.cli.main import app as finetune_app
from clusterq_gen.cli import app as gen_app
from tests.conftest import FACTORY, Cli

APPS = {"clusterq-gen": gen_app, "clusterq-finetune": finetune_app}


def commands() -> Iterator[list[str]]:
    """Every command line that has a help: the programs, their commands, and those commands' commands."""

    def below(group: Any, words: list[str]) -> Iterator[list[str]]:
        yield words
        for name, command in getattr(group, "commands", {}).items():
            yield from below(command, [*words, name])

    for program, app in APPS.items():
        yield from below(typer.main.get_command(app), [program])


def cli_of(program: str, gen: Cli, finetune: Cli) -> Cli:
    return gen if program == "clusterq-gen" else finetune


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_short_help_lists_what_is_used_most_and_the_long_one_everything(narrow: None, gen: Cli, finetune: Cli) -> None:
    short = 0
    for words in commands():
        command: Any = typer.main.get_command(APPS[words[0]])
        for word in words[1:]:
            command = command.commands[word]
        params = {param.name: param for param in command.params if not getattr(param, "hidden", False)}
        help_of = {flag: cli_of(words[0], gen, finetune)(*words[1:], flag) for flag in ("--help", "--help-all")}
        if not command.brief:
            assert help_of["--help-all"] == help_of["--help"], words
            assert "--help-all" not in help_of["--help"].out, words
            continue
        short += 1
        assert set(command.brief) <= set(params), words
        flags = {name: next(flag for flag in param.opts if flag.startswith("--")) for name, param in params.items()}
        shown = {flag: set(re.findall(r"^│ [* ]*(--[a-z-]+)", done.out, re.MULTILINE)) for flag, done in help_of.items()}
        assert shown["--help"] == {*(flags[name] for name in command.brief), "--help", "--help-all"}, words
        left_out = set() if command.left_out is None else command.left_out({})[0]
        kept, gone = ({flag for name, flag in flags.items() if (name in left_out) == out} for out in (False, True))
        assert kept <= shown["--help-all"], words
        assert not gone & shown["--help-all"], words
        assert len(help_of["--help"].out.splitlines()) <= 100, words
        assert "--help-all" in help_of["--help"].out
    assert short == 4


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_fits_and_has_examples(words: list[str], narrow: None, gen: Cli, finetune: Cli) -> None:
    done = cli_of(words[0], gen, finetune)(*words[1:], "--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert "<bool>" not in done.out, "a flag takes no value"
    text = " ".join(done.out.split())
    if len(words) == 1:
        assert "Exit codes: 0 done; 1 a defect, with its traceback; 2 something to correct" in text
        assert "130 interrupted" in text
    if words not in (["clusterq-gen"], ["clusterq-finetune", "shards"], ["clusterq-finetune", "figures"]):
        after = text.partition("Examples: $ ")[2]
        assert after.startswith(" ".join(words)), "an example of this very command"


def test_help_groups_settings_and_names_choices(narrow: None, gen: Cli) -> None:
    shown = gen("train", "--help-all").out
    for panel in ("Teacher", "Method", "Quant", "Generator", "Train", "Emit", "Runtime"):
        assert f"╭─ {panel} ─" in shown
    text = " ".join(re.sub("[│╭╰─╮╯]", " ", shown).split())
    assert (
        "--fda-reduction <name> how FDA and DE reduce over present classes, semantic layers and channels (one of sum, mean;"
        in text
    )
    assert "--logits store the teacher's logits with each image (default: on); --no-logits: the opposite" in text


def test_the_long_help_has_the_options_of_the_method(gen: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for words, method, own, others in (
        ([], "clusterq", {"--alpha-fda", "--kl-weight", "--refine-steps"}, {"--bank-steps", "--lambda-l"}),
        (
            ["--method", "gdfq"],
            "gdfq",
            {"--alpha-bns", "--epochs", "--mix-classes"},
            {"--alpha-fda", "--bank-steps", "--lambda-l"},
        ),
        (["--method=adadfq"], "adadfq", {"--lambda-l", "--alpha-spread"}, {"--alpha-bns", "--hard-gamma", "--bank-steps"}),
        (["--method", "zeroq"], "zeroq", {"--bank-steps", "--batch-size", "--per-class"}, {"--epochs", "--width", "--labels"}),
        (["--method", "x.py:f"], "x.py:f", {"--alpha-fda", "--lambda-l"}, {"--bank-steps"}),
    ):
        for line in (["--help-all", *words], [*words, "--help-all"]):
            done = gen("train", *line)
            shown = set(re.findall(r"^│ [* ]*(--[a-z-]+)", done.out, re.MULTILINE))
            assert (done.code, own - shown, others & shown) == (0, set(), set()), line
            assert f"Options of --method {method}. For those of another method: --method NAME --help-all." in done.out
    assert gen("train", "--help").out == gen("train", "--help", "--method", "zeroq").out
    assert (
        "--bank-steps has no meaning" in gen("train", "--arch", "resnet20_cifar10", "--preset", "quick", "--bank-steps", 3).err
    )


@pytest.mark.parametrize("words", [["clusterq-gen"], ["clusterq-finetune"], ["clusterq-finetune", "shards"]], ids=" ".join)
def test_commands_come_before_options(words: list[str], gen: Cli, finetune: Cli) -> None:
    for flag in ("--help", "--help-all"):
        printed = cli_of(words[0], gen, finetune)(*words[1:], flag).out
        assert printed.count("Usage: ") == 1
        assert printed.index("╭─ Commands ─") < printed.index("╭─ Options ─"), flag


def test_brackets_in_descriptions_are_shown(gen: Cli, finetune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the name of an extra: they are no markup."""
    monkeypatch.setenv("COLUMNS", "300")
    assert "[tensorboard]" in gen("train", "--help-all").out
    assert "[tensorboard]" in finetune("--help-all").out


def printed_examples(words: list[str], gen: Cli, finetune: Cli) -> Iterator[tuple[str, list[str]]]:
    """Each example of a command's help: its program, its words."""
    printed = cli_of(words[0], gen, finetune)(*words[1:], "--help").out
    for line in re.findall(r"^ \$ (.+?) *$", printed, re.MULTILINE):
        program, *rest = shlex.split(line)
        yield program, rest


def test_examples_are_command_lines_that_parse(gen: Cli, finetune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    count = 0
    for program, rest in (example for words in commands() for example in printed_examples(words, gen, finetune)):
        command: Any = typer.main.get_command(APPS[program])
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        context = command.make_context(program, [], resilient_parsing=True)
        command.make_parser(context).parse_args(rest)
        count += 1
    assert count > 20


NET = """
from torch import nn

def build():
    conv = nn.Conv2d(3, 8, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""


def test_examples_with_a_factory_are_accepted(gen: Cli, finetune: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They name all that a factory does not say of its images. Those of a set that is there need that set's own network."""
    (tmp_path / "net.py").write_text(NET)
    made: dict[str, Any] = {}
    exec(NET, made)
    torch.save(made["build"]().state_dict(), tmp_path / "net.pth")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)

    def run(_: str, words: list[str], on_line: Callable[[str], object]) -> int:
        made = gen(*words)
        for line in made.out.splitlines():
            on_line(line)
        return made.code

    monkeypatch.setattr("clusterq_finetune.quantize.generate.run_program", run)
    for words in (["clusterq-gen", "train"], ["clusterq-finetune", "quantize"]):
        (example,) = [rest for _, rest in printed_examples(words, gen, finetune) if "net.py:build" in rest]
        done = cli_of(words[0], gen, finetune)(*example, "--dry-run")
        assert done.code == 0, (example, done.err)


def test_version(gen: Cli, finetune: Cli) -> None:
    for program in APPS:
        done = cli_of(program, gen, finetune)("--version")
        assert done.code == 0
        assert re.fullmatch(rf"{program} \d+\.\d+\.\d+\S* \(torch \d\S+, Python 3\.\d+\.\d+\S*\)\n", done.out)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("clusterq-gen trian", "Did you mean 'train'?"),
        ("clusterq-gen train --metod gdfq", "No such option: --metod; did you mean --method?"),
        ("clusterq-gen train --de-noise gausian", "'gausian' is not one of gaussian, uniform; did you mean gaussian?"),
        (
            "clusterq-gen train --arch resnet20_cifar10 --preset quick --method clustrq",
            "(found 'clustrq'); did you mean clusterq?",
        ),
        ("clusterq-gen train --preset QUICK", "did you mean quick?"),
        ("clusterq-gen emit --run x --devise cpu", "did you mean --device?"),
        ("clusterq-finetune evalute", "Did you mean 'evaluate'?"),
        ("clusterq-finetune --recipe bets", "did you mean best?"),
        ("clusterq-finetune --quantiser symmetric", "did you mean --quantizer?"),
        ("clusterq-finetune evaluate --val x --interpolation biliner", "did you mean bilinear?"),
        ("clusterq-finetune export --student x --out y --format onxx", "did you mean onnx?"),
        ("clusterq-finetune shards vrify", "Did you mean 'verify'?"),
        ("clusterq-finetune shards preview x --split hedlout", "did you mean heldout?"),
        ("clusterq-finetune --device xyz", "'xyz' is not one of auto, cpu, cuda"),
    ],
)
def test_mistyped_names(line: str, meant: str, narrow: None, gen: Cli, finetune: Cli) -> None:
    program, *words = line.split()
    done = cli_of(program, gen, finetune)(*words)
    text = " ".join(done.err.replace("│", " ").split())
    assert done.code == 2
    assert meant in text
    assert "Value error" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("clusterq-gen tr", {"train"}),
        ("clusterq-gen train --fda-u", {"--fda-units"}),
        ("clusterq-gen train --de-noise g", {"gaussian"}),
        ("clusterq-gen train --method i", {"intraq"}),
        ("clusterq-gen train --method ad", {"adadfq"}),
        ("clusterq-finetune --recipe ", {"fast", "paper", "best"}),
        ("clusterq-finetune shards pre", {"preview"}),
    ],
)
def test_completion(
    shell: str, line: str, wanted: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = line.split()[0]
    words = line.split(" ")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv(f"_{program.upper().replace('-', '_')}_COMPLETE", f"complete_{shell}")
    with pytest.raises(SystemExit) as end:
        typer.main.get_command(APPS[program]).main([], prog_name=program)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    offered = (
        set(re.findall(r'"([^"]+)"', printed))
        if shell == "zsh"
        else {offer.partition("\t")[0] for offer in printed.split("\n") if offer}
    )
    assert wanted <= offered
    assert all(offer.startswith(words[-1]) for offer in offered if shell != "zsh")


def test_a_mistyped_choice_in_a_file(digits_run: Path, gen: Cli, tmp_path: Path) -> None:
    text = (digits_run / "config.yaml").read_text()
    assert "de_noise: gaussian" in text
    (tmp_path / "config.yaml").write_text(text.replace("de_noise: gaussian", "de_noise: gausian"))
    done = gen("train", "--config", tmp_path / "config.yaml", "--arch", FACTORY, "--out", tmp_path / "out")
    assert done.code == 2
    assert "--de-noise: must be one of gaussian, uniform (found 'gausian'); did you mean gaussian?" in done.err
