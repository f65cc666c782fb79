"""Command lines read by the real parsers, without running what they ask for."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import typer
from pydantic import ValidationError

import clusterq_finetune.config as finetune_config
import clusterq_gen.config as gen_config
from clusterq_common.export.config import OnnxConfig
from clusterq_common.settings import Settings
from clusterq_finetune.cli.main import app as finetune_app
from clusterq_gen.cli import app as gen_app

# These act while they are parsed, and the second changes the shell's own files.
ACT_AT_ONCE = {"--help", "--help-all", "--version", "--install-completion", "--show-completion"}
APPS = {"clusterq-gen": gen_app, "clusterq-finetune": finetune_app}
MODELS: dict[str, list[type[Settings]]] = {
    "clusterq-gen": list(gen_config.SECTIONS.values()),
    "clusterq-finetune": [*finetune_config.SECTIONS.values(), finetune_config.EvaluationConfig, OnnxConfig],
}


@cache
def root_of(program: str) -> Any:
    """The command that holds all of a program's: it is made from all settings, which takes a while."""
    return typer.main.get_command(APPS[program])


def parse(program: str, arguments: list[str]) -> Any:
    """The context of the command that the arguments call; options that act at once are left out, once they are known to exist.

    Raises:
        typer's UsageError: no such command or option, a value that does not fit, something missing.
        pydantic's ValidationError: a value that the settings behind the options refuse.
    """
    acting = set(arguments) & ACT_AT_ONCE
    assert acting <= every_flag()
    arguments = [word for word in arguments if word not in acting]
    root = root_of(program)
    if acting and not arguments:
        return root.context_class(root, info_name=program)
    context = root.make_context(program, arguments)
    while getattr(context.command, "commands", None):
        rest = [*context._protected_args, *context.args]
        if not rest:
            break
        name, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    for model in MODELS[program]:
        given = {name: context.params.get(name) for name in model.model_fields}
        # A shell variable's value is not known here.
        known = {name: value for name, value in given.items() if value is not None and "$" not in str(value)}
        try:
            model.model_validate(known)
        except ValidationError as error:
            # What several settings must have in common is settled with the preset or recipe, when a command runs.
            if any(problem["type"] != "missing" and problem["loc"] for problem in error.errors()):
                raise
    return context


def every_command() -> Iterator[tuple[str, Any]]:
    """Each command of both programs, as it is typed, with its context."""
    for program in APPS:
        root = root_of(program)
        waiting = [root.context_class(root, info_name=program)]
        while waiting:
            context = waiting.pop()
            yield context.command_path, context
            inner = getattr(context.command, "commands", {})
            waiting += [command.context_class(command, info_name=name, parent=context) for name, command in inner.items()]


@cache
def every_flag() -> frozenset[str]:
    """All long options of both programs."""
    flags = set()
    for _, context in every_command():
        for parameter in context.command.get_params(context):
            flags |= {word for word in (*parameter.opts, *parameter.secondary_opts) if word.startswith("--")}
    return frozenset(flags)
