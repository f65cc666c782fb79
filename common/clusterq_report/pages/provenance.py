"""Parts of a page about where things come from: settings, versions, digests, and the command that makes them again."""

from itertools import islice
from pathlib import Path
from typing import Any

from clusterq_common.escape import shell_command
from clusterq_common.run.run_folder import CONFIG, RESULT
from clusterq_common.setting_names import setting_name
from clusterq_report.html.page import code, folded, paragraph, table
from clusterq_report.html.redact_paths import SAID, shown_path
from clusterq_report.html.text import number
from clusterq_report.run_data import Source, real, section, word

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
LONGEST_LIST = 24
DEEPEST = 3


def again(source: Source) -> str:
    """Commands that repeat the run, and the one that started it."""
    lines = []
    if source.kind == "generator":
        lines.append(f"clusterq-gen train --config {CONFIG} --out ../again")
        elsewhere = f"{setting_name('weights')} (and {setting_name('arch')}, for a file of your own)"
    elif source.kind == "fine-tuning":
        val = _value_of("--val", source)
        real_images = "" if val is None else f" {shell_command('--val', shown_path(val, source.folder))}"
        lines.append(f"clusterq-finetune --config {CONFIG} --out ../again{real_images}")
        if source.result:
            lines.append(f"clusterq-finetune reproduce {RESULT} --out ../again")
        shards, weights, arch = setting_name("shards"), setting_name("weights"), setting_name("arch")
        elsewhere = f"{shards} and {weights} (and {arch}, for a file of your own; reproduce takes {shards} alone)"
    started = _started(source)
    if started and not lines:
        return (
            paragraph(f"As it was started; the same {setting_name('out')} goes on with what is there:")
            + code(started)
            + paragraph(SAID)
        )
    if not lines:
        return ""
    found = paragraph("In the run's folder, from the saved settings, every default included:") + code("\n".join(lines))
    if source.kind == "fine-tuning" and source.result:
        found += paragraph("The second one also says whether the same student came out.")
    if started:
        found += paragraph("As it was started:") + code(started)
    return found + paragraph(f"{SAID} On another machine say where those files are now: {elsewhere}.")


def _command(source: Source) -> list[str]:
    found = source.environment.get("command")
    return [word(one) for one in found] if isinstance(found, list) else []


def _started(source: Source) -> str:
    """The command line as a person types it: the program's name instead of where it was installed; empty for an unknown program."""
    words = _command(source)
    if not words:
        return ""
    program = Path(words[0])
    name = PROGRAMS.get(program.parent.name if program.stem == "__main__" else program.name)
    if name is None:
        return ""
    return f"{name} {shell_command(*(shown_path(one, source.folder) for one in words[1:] if one not in ABOUT_FOLDER))}"


def _value_of(flag: str, source: Source) -> str | None:
    words = _command(source)
    for place, one in enumerate(words):
        if one == flag and place + 1 < len(words):
            return words[place + 1]
        if one.startswith(f"{flag}="):
            return one.partition("=")[2]
    return None


def settings(source: Source) -> str:
    """Everything in config.yaml, a table for each section."""
    found = []
    plain = {name: value for name, value in source.config.items() if not isinstance(value, dict)}
    for name, values in {
        "": plain,
        **{name: value for name, value in source.config.items() if isinstance(value, dict)},
    }.items():
        if values:
            listed = [[str(key), _shown(value, source.folder)] for key, value in values.items()]
            found.append(folded(str(name) or "run", table(["setting", "value"], listed, words=2)))
    return "".join(found)


def origins(source: Source) -> str:
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
        ("seconds", real(result.get("seconds"))),
        ("platform", environment.get("platform")),
        ("images evaluated on", _shown(section(result.get("evaluated_on")), source.folder) or None),
        ("preprocessing", result.get("preprocessing")),
        ("teacher's logits", _shown(section(result.get("teacher_logits")), source.folder) or None),
    ]
    versions = section(environment.get("versions")) or section(result.get("versions"))
    listed = [[name, _shown(value, source.folder)] for name, value in facts if value is not None and value != ""]
    listed += [[str(name), _shown(value, source.folder)] for name, value in versions.items()]
    return table(["what", "value"], listed, words=2) if listed else ""


def seed(source: Source) -> str:
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
