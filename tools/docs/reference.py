"""Pages of the documentation that describe the commands, written from the command lines themselves.

What `--help` says of an option is what its page says, in the same groups and the same order, so the two cannot differ.
"""

import html
import re
from collections.abc import Iterator
from typing import Any

import typer

OWN_PANEL = "The run"
# How help names examples: in its last line, or as lines of the epilog after "Examples:".
EXAMPLE = re.compile(r"\s*Example: |^\s*\$ ", re.MULTILINE)


def reference(program: str, app: typer.Typer) -> str:
    """One program as a Markdown page: a section a command, its options as definition lists under the panels of `--help`."""
    root = typer.main.get_command(app)
    parts = [f"# `{program}`"]
    for context in commands(program, root):
        parts += _command(context, is_program=context.parent is None)
    return "\n\n".join(parts) + "\n"


def commands(program: str, root: Any) -> Iterator[Any]:
    """A context for each command that can be called, depth first; `context.command_path` is how it is typed."""
    context = root.context_class(root, info_name=program)
    yield context
    yield from _below(context)


def options(context: Any) -> Iterator[Any]:
    """The command's options and arguments that `--help` shows, `--help` itself last."""
    for parameter in context.command.get_params(context):
        if not getattr(parameter, "hidden", False):
            yield parameter


def _below(context: Any) -> Iterator[Any]:
    for name, command in getattr(context.command, "commands", {}).items():
        if not command.hidden:
            inner = command.context_class(command, info_name=name, parent=context)
            yield inner
            yield from _below(inner)


def _command(context: Any, *, is_program: bool) -> list[str]:
    """Heading, help, usage, options."""
    command = context.command
    text, examples = _parted(command.help or "")
    remarks, more = _parted(command.epilog or "")
    examples += more
    parts = [] if is_program else [f"## `{context.command_path}`"]
    parts.append(_prose(text))
    inner = getattr(command, "commands", {})
    if inner:
        parts.append("\n".join(_link(context, name, one) for name, one in inner.items() if not one.hidden))
    parts.append(_fenced(f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"))
    if examples:
        parts += ["For example:", _fenced("\n".join(examples))]
    if remarks:
        parts.append(_prose(remarks))
    panels = _panels(context)
    for panel, parameters in panels.items():
        if len(panels) > 1:
            parts.append(f"### {panel} {{ #{_anchor(context, 'panel ' + panel)} }}")
        parts += [_definition(context, parameter) for parameter in parameters]
    return parts


def _parted(text: str) -> tuple[str, list[str]]:
    """A help text without its examples, and those, a command each."""
    examples = []
    prose = []
    for paragraph in text.split("\n\n"):
        before, *found = EXAMPLE.split(paragraph)
        prose.append(before.removesuffix("Examples:").strip())
        examples += [" ".join(one.split()) for one in found]
    return "\n\n".join(one for one in prose if one), examples


def _panels(context: Any) -> dict[str, list[Any]]:
    """Panel -> parameters; those without one first, as one reads them most."""
    panels: dict[str, list[Any]] = {OWN_PANEL: []}
    for parameter in options(context):
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or OWN_PANEL, []).append(parameter)
    return panels


def _definition(context: Any, parameter: Any) -> str:
    record = parameter.get_help_record(context)
    spelling, text = record if record else (parameter.make_metavar(context), "")
    # A flag or an argument's name first, then what kind of value it takes.
    words = re.split(r"(?<=[\w-])\s+(?=[^-\s])", spelling, maxsplit=1)
    kind = f' <span class="kind">{html.escape(words[1])}</span>' if len(words) > 1 else ""
    anchor = _anchor(context, parameter.name)
    return f'<a id="{anchor}"></a>`{words[0]}`{kind}\n:   {_prose(text)}'


def _anchor(context: Any, name: str) -> str:
    return f"{context.command_path}-{name}".lower().replace(" ", "-").replace("_", "-").replace("'", "")


def _link(context: Any, name: str, command: Any) -> str:
    path = f"{context.command_path} {name}"
    summary = _parted(command.help or "")[0].split("\n")[0]
    return f"- [`{path}`](#{path.replace(' ', '-')}): {_prose(summary)}"


def _prose(text: str) -> str:
    """Help text as Markdown that shows the same characters; pages that it names are links."""
    shown = re.sub(r"[\\`*_\[\]{}<>#|^~&]", lambda found: f"&#{ord(found[0])};", " ".join(text.split()))
    shown = re.sub(r"docs/([\w-]+)\.md", r"[\1](../\1.md)", shown)
    return re.sub(r"(?<![\w-])(--[a-z][a-z0-9-]*)", r"`\1`", shown)


def _fenced(text: str) -> str:
    return f"```bash\n{text}\n```"
