"""Pages of the documentation that describe the commands, generated from the command lines.

A page has the same text for each option as `--help`, in the same groups and order, so the two cannot differ.
"""

import html
import re
from collections.abc import Iterator
from typing import Any

import typer

OWN_PANEL = "The run"
# Examples in help texts: in the last line, or as lines of the epilog after "Examples:".
EXAMPLE = re.compile(r"\s*Example: |^\s*\$ ", re.MULTILINE)


def reference(program: str, app: typer.Typer) -> str:
    """Return a program's Markdown page: a section a command, its options as definition lists under the panels of `--help`."""
    root = typer.main.get_command(app)
    parts = [f"# `{program}`"]
    for context in commands(program, root):
        parts += _command(context, is_program=context.parent is None)
    return "\n\n".join(parts) + "\n"


def commands(program: str, root: Any) -> Iterator[Any]:
    """Yield a context for each command that can be called, depth first. `context.command_path` is its typed form."""
    context = root.context_class(root, info_name=program)
    yield context
    yield from _below(context)


def options(context: Any) -> Iterator[Any]:
    """Yield the command's options and arguments that `--help` shows, with `--help` itself last."""
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
    """Return the parts of a command's section: heading, help, usage, options."""
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
    """Split a help text into the text without examples and the example commands."""
    examples = []
    prose = []
    for paragraph in text.split("\n\n"):
        before, *found = EXAMPLE.split(paragraph)
        prose.append(before.removesuffix("Examples:").strip())
        examples += [" ".join(one.split()) for one in found]
    return "\n\n".join(one for one in prose if one), examples


def _panels(context: Any) -> dict[str, list[Any]]:
    """Return the parameters by panel. Those without a panel come first, because they are read most."""
    panels: dict[str, list[Any]] = {OWN_PANEL: []}
    for parameter in options(context):
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or OWN_PANEL, []).append(parameter)
    return panels


def _definition(context: Any, parameter: Any) -> str:
    record = parameter.get_help_record(context)
    spelling, text = record if record else (parameter.make_metavar(context), "")
    # The name of a flag or an argument comes first, then the type of its value.
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
    """Return a help text as Markdown that shows the same characters, with links for the pages that it names."""
    shown = re.sub(r"[\\`*_\[\]{}<>#|^~&]", lambda found: f"&#{ord(found[0])};", " ".join(text.split()))
    shown = re.sub(r"docs/([\w-]+)\.md", r"[\1](../\1.md)", shown)
    return re.sub(r"(?<![\w-])(--[a-z][a-z0-9-]*)", r"`\1`", shown)


def _fenced(text: str) -> str:
    return f"```bash\n{text}\n```"
