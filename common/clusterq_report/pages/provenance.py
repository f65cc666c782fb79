"""Page sections on provenance: settings, versions, digests, and the command that repeats the run."""

import shlex
from itertools import islice
from pathlib import Path
from typing import Any

from clusterq_common.run.run_folder import CONFIG, RESULT
from clusterq_report.html.page import code, folded, paragraph, table
from clusterq_report.html.redact_paths import SAID, shown_path
from clusterq_report.html.text import number
from clusterq_report.run_data import Source, real, section, word

# Known programs, by the name of the program's file or of its package. A folder from elsewhere could name any other program for
# its reader to copy and run.
PROGRAMS = {
    "clusterq-gen": "clusterq-gen",
    "clusterq_gen": "clusterq-gen",
    "clusterq-finetune": "clusterq-finetune",
    "clusterq_finetune": "clusterq-finetune",
    "compare_methods.py": "python tools/compare_methods.py",
    "analyses.py": "python tools/analyses.py",
}
# Flags on existing folders, which are not part of the run's settings.
ABOUT_FOLDER = {"--resume", "--overwrite"}
LONGEST_LIST = 24
DEEPEST = 3


def again(source: Source) -> str:
    """Return the commands that repeat the run, and the one that started it."""
    lines = []
    if source.kind == "generator":
        lines.append(f"clusterq-gen train --config {CONFIG} --out ../again")
        flags = "--weights (and --arch, for a file of your own)"
    elif source.kind == "fine-tuning":
        val = _value_of("--val", source)
        real_images = "" if val is None else f" --val {shlex.quote(shown_path(val, source.folder))}"
        lines.append(f"clusterq-finetune --config {CONFIG} --out ../again{real_images}")
        if source.result:
            lines.append(f"clusterq-finetune reproduce {RESULT} --out ../again")
        flags = "--shards and --weights (and --arch, for a file of your own; reproduce takes --shards alone)"
    started = _started(source)
    if started and not lines:
        return paragraph("As it was started; the same --out goes on with what is there:") + code(started) + paragraph(SAID)
    if not lines:
        return ""
    markup = paragraph("In the run's folder, from the saved settings, every default included:") + code("\n".join(lines))
    if source.kind == "fine-tuning" and source.result:
        markup += paragraph("The second one also says whether the same student came out.")
    if started:
        markup += paragraph("As it was started:") + code(started)
    return markup + paragraph(f"{SAID} On another machine say where those files are now: {flags}.")


def _command(source: Source) -> list[str]:
    command = source.environment.get("command")
    return [word(part) for part in command] if isinstance(command, list) else []


def _started(source: Source) -> str:
    """Return the command line as a person types it, with the program's name instead of its path; empty for an unknown program."""
    words = _command(source)
    if not words:
        return ""
    program = Path(words[0])
    name = PROGRAMS.get(program.parent.name if program.stem == "__main__" else program.name)
    if name is None:
        return ""
    return " ".join([name, *(shlex.quote(shown_path(part, source.folder)) for part in words[1:] if part not in ABOUT_FOLDER)])


def _value_of(flag: str, source: Source) -> str | None:
    words = _command(source)
    for place, part in enumerate(words):
        if part == flag and place + 1 < len(words):
            return words[place + 1]
        if part.startswith(f"{flag}="):
            return part.partition("=")[2]
    return None


def settings(source: Source) -> str:
    """Return all settings of config.yaml, as one table for each section."""
    tables = []
    plain = {name: value for name, value in source.config.items() if not isinstance(value, dict)}
    for name, values in {
        "": plain,
        **{name: value for name, value in source.config.items() if isinstance(value, dict)},
    }.items():
        if values:
            listed = [[str(key), _shown(value, source.folder)] for key, value in values.items()]
            tables.append(folded(str(name) or "run", table(["setting", "value"], listed, words=2)))
    return "".join(tables)


def origins(source: Source) -> str:
    """Return a table of digests, versions and machine, which must agree for two runs to be the same."""
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
    """Return the run's seed."""
    return number(real(section(source.config.get("runtime")).get("seed")))


def _shown(value: Any, folder: Path, depth: int = 0) -> str:
    if not isinstance(value, list | dict):
        return f"{value:g}" if isinstance(value, float) else shown_path(word(value), folder)
    if depth == DEEPEST:
        return "..."
    if isinstance(value, dict):
        parts = [f"{name} {_shown(item, folder, depth + 1)}" for name, item in islice(value.items(), LONGEST_LIST)]
    else:
        parts = [_shown(item, folder, depth + 1) for item in value[:LONGEST_LIST]]
    return ", ".join(parts) + (f", ... ({len(value)} in all)" if len(value) > LONGEST_LIST else "")
