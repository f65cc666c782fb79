"""Parts of a page about where things come from: settings, versions, digests, and the command that makes them again."""

import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

from clusterq_common.escape import shell_command
from clusterq_common.quantities import duration, number
from clusterq_common.run.run_folder import CONFIG, RESULT
from clusterq_common.setting_names import setting_name
from clusterq_report.html.blocks import Block, Code, Folded, Paragraph, Table
from clusterq_report.html.redact_paths import ELSEWHERE, SAID, shown_path
from clusterq_report.run_data import RunData, real, section, word

# What a command line may start with, by the name of the program's file or of its package. A received folder could name any other
# program for its reader to copy and run.
PROGRAMS = {
    "clusterq-gen": "clusterq-gen",
    "clusterq_gen": "clusterq-gen",
    "clusterq-finetune": "clusterq-finetune",
    "clusterq_finetune": "clusterq-finetune",
    "compare_methods.py": "python tools/compare_methods.py",
    "analyses.py": "python tools/analyses.py",
}
# Flags that say what to do with a folder that exists: no part of what was done.
ABOUT_FOLDER = {"--resume", "--overwrite"}
SHOW_PROGRAM = "import onnx, sys; print(onnx.load(sys.argv[1]).doc_string)"
LONGEST_LIST = 24
DEEPEST = 3


def rerun_commands(source: RunData) -> list[Block]:
    """Return the commands that repeat the run, to be typed in its folder, and a record of the one that started it."""
    started = _started(source)
    if source.kind == "comparison":
        return [*_record(started), Paragraph(SAID)] if started else []
    first = f"In {_place(source)}, from the saved settings, every default included:"
    if source.kind == "generator":
        commands = [(first, f"clusterq-gen train --config {CONFIG} --out ../again")]
        elsewhere = f"{setting_name('weights')} (and {setting_name('arch')}, for a file of your own)"
    else:
        commands = [(first, f"clusterq-finetune --config {CONFIG} --out ../again")]
        if source.result:
            caption = "The same from the result, and whether the same student comes out:"
            commands.append((caption, f"clusterq-finetune reproduce {RESULT} --out ../reproduced"))
        shards, weights, arch = setting_name("shards"), setting_name("weights"), setting_name("arch")
        elsewhere = f"{shards} and {weights} (and {arch}, for a file of your own; reproduce takes {shards} alone)"
    blocks: list[Block] = [block for caption, command in commands for block in (Paragraph(caption), Code(command))]
    val = _value_of("--val", source)
    if source.kind == "fine-tuning" and val is not None:
        caption = (
            f"The settings do not hold the real images: add {setting_name('val')} and their folder ({shown_path(val, source.folder)}) to "
            "measure the accuracy again."
        )
        blocks.append(Paragraph(caption))
    return [*blocks, *_record(started), Paragraph(f"{SAID} On another machine say where those files are now: {elsewhere}.")]


def next_step(source: RunData) -> list[Block]:
    """Return the command that goes on from here, to be typed in the run's folder."""
    if source.kind == "generator":
        caption, command = _after_generator(source)
    elif not source.result:
        caption, command = "The run is not finished. To go on", f"clusterq-finetune --config {CONFIG} --out . --resume"
    elif real(section(source.result.get("student")).get("top1")) is None:
        caption = "Next, measure the accuracy on real images (put in your folder)"
        command = "clusterq-finetune evaluate --student . --val path/to/real/images"
    elif isinstance(path := section(source.benchmark.get("file")).get("path"), str):
        # Its doc string holds a program that runs it.
        caption = "Next, run the file: it holds a program that does, to be printed"
        command = shell_command("python", "-c", SHOW_PROGRAM, re.split(r"[\\/]", path)[-1])
        return [Paragraph(f"{caption}; in the file's folder:"), Code(command)]
    else:
        caption, command = (
            "Next, write it as a file for other programs",
            "clusterq-finetune export --student . --out model.onnx",
        )
    return [Paragraph(f"{caption}; in {_place(source)}:"), Code(command)]


def _after_generator(source: RunData) -> tuple[str, str]:
    if source.manifest is None:
        return "The run is not finished. To go on", "clusterq-gen train --out . --resume"
    bits = word(section(source.config.get("quant")).get("bits"), "w4a4")
    return "Next, make a low-bit model from these images", shell_command("clusterq-finetune", "--shards", ".", "--bits", bits)


def _place(source: RunData) -> str:
    """Return where the run's commands are typed: "the run's folder", with its name if the page lies elsewhere."""
    relative = os.curdir if source.page is None else os.path.relpath(source.folder, source.page.parent)
    if relative == os.curdir:
        return "the run's folder"
    outside = relative.startswith(os.pardir)
    return f"the run's folder, {f'{ELSEWHERE}/{source.folder.name}' if outside else relative}"


def _record(started: str) -> list[Block]:
    """Return the command line that started the run; where paths were cut it is only a record."""
    if not started:
        return []
    cut = (
        f" (a record: with the paths after {ELSEWHERE}/ cut, it does not run as it stands)"
        if f"{ELSEWHERE}/" in started
        else ""
    )
    return [Paragraph(f"As it was started{cut}:"), Code(started)]


def _command(source: RunData) -> list[str]:
    command = source.environment.get("command")
    return [word(one) for one in command] if isinstance(command, list) else []


def _started(source: RunData) -> str:
    """The command line as a person types it: the program's name instead of where it was installed; empty for an unknown program."""
    words = _command(source)
    if not words:
        return ""
    program = Path(words[0])
    name = PROGRAMS.get(program.parent.name if program.stem == "__main__" else program.name)
    if name is None:
        return ""
    return f"{name} {shell_command(*(shown_path(one, source.folder) for one in words[1:] if one not in ABOUT_FOLDER))}"


def _value_of(flag: str, source: RunData) -> str | None:
    words = _command(source)
    for place, one in enumerate(words):
        if one == flag and place + 1 < len(words):
            return words[place + 1]
        if one.startswith(f"{flag}="):
            return one.partition("=")[2]
    return None


def settings(source: RunData) -> list[Block]:
    """Everything in config.yaml, a table for each section."""
    blocks: list[Block] = []
    plain = {name: value for name, value in source.config.items() if not isinstance(value, dict)}
    for name, values in {
        "": plain,
        **{name: value for name, value in source.config.items() if isinstance(value, dict)},
    }.items():
        if values:
            listed = [[str(key), _shown(value, source.folder)] for key, value in values.items()]
            blocks.append(Folded(str(name) or "run", [Table(["setting", "value"], listed, words=2)]))
    return blocks


def origins(source: RunData) -> list[Block]:
    """Digests, versions and machine: what must agree for two runs to be the same."""
    manifest, result, environment = source.manifest, source.result, source.environment
    facts: list[tuple[str, Any]] = [
        ("teacher", section(result.get("teacher")).get("digest") or (manifest and manifest.teacher.digest)),
        ("shards", section(result.get("shards")).get("digest") or (manifest and manifest.digest)),
        ("student.safetensors, SHA-256", section(result.get("student")).get("sha256") or source.analysis.get("student")),
        ("shards made by", manifest and f"{manifest.created_by}, commit {manifest.commit or 'unknown'}"),
        ("shards' licence", manifest and manifest.license),
        ("shards' note", manifest and manifest.note),
        ("this run's commit", environment.get("commit")),
        ("device", result.get("device") or environment.get("device")),
        ("threads", result.get("threads") or environment.get("threads")),
        ("processes", result.get("processes")),
        ("time", None if (seconds := real(result.get("seconds"))) is None else duration(seconds)),
        ("platform", environment.get("platform")),
        ("images evaluated on", _shown(section(result.get("evaluated_on")), source.folder) or None),
        ("preprocessing", result.get("preprocessing")),
        ("teacher's logits", _shown(section(result.get("teacher_logits")), source.folder) or None),
    ]
    versions = section(environment.get("versions")) or section(result.get("versions"))
    listed = [[name, _shown(value, source.folder)] for name, value in facts if value is not None and value != ""]
    listed += [[str(name), _shown(value, source.folder)] for name, value in versions.items()]
    return [Table(["what", "value"], listed, words=2)] if listed else []


def seed(source: RunData) -> str:
    """The run's seed."""
    return number(real(section(source.config.get("runtime")).get("seed")))


def _shown(value: Any, folder: Path, depth: int = 0) -> str:
    if not isinstance(value, list | dict):
        return f"{value:g}" if isinstance(value, float) else shown_path(word(value), folder)
    if depth == DEEPEST:
        return "..."
    if isinstance(value, dict):
        parts = [f"{name} {_shown(one, folder, depth + 1)}" for name, one in islice(value.items(), LONGEST_LIST)]
    else:
        parts = [_shown(one, folder, depth + 1) for one in value[:LONGEST_LIST]]
    return ", ".join(parts) + (f", ... ({len(value)} in all)" if len(value) > LONGEST_LIST else "")
