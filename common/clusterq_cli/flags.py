"""Command-line options made from settings models, so that names, help and defaults are stated once; and the way back, from settings to flags.

It does not depend on a command-line library: the caller passes the function that makes an option.
"""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from clusterq_common.settings import Settings, former_names

Sections = Mapping[str, type[Settings]]
# Section and field -> text on how the default differs by preset, e.g. {"train": {"lr": "0.001; quick 0.002"}}.
Notes = Mapping[str, Mapping[str, str]]


def with_flags(
    sections: Sections, option: Callable[..., Any], notes: Notes | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of `sections`.

    The command's first parameter receives the values that the user gave, as section -> field -> value. Options have no default of
    their own, so that a preset or a file can override the model's default and the flag can override both.

    Args:
        sections: section name -> settings model. A field `kl_weight` becomes `--kl-weight`; by its former names it is accepted, too.
        option: function that makes an option: `option(None, flag, help=..., show_default=..., rich_help_panel=..., metavar=...)`.
            For a text with suggested names also `autocompletion=`, a function from the beginning of a name to the matching names.
        notes: replaces the default shown for a field.
    """
    notes = notes or {}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        owner: dict[str, str] = {}
        now_called: dict[str, str] = {}
        parameters = []
        for section, model in sections.items():
            for name, field in model.model_fields.items():
                if name in owner:
                    raise ValueError(f"two sections have a field {name!r}: {owner[name]} and {section}")
                owner[name] = section
                parameters.append(_parameter(name, field, option, section, notes.get(section, {}).get(name)))
                for former in former_names(field):
                    owner[former], now_called[former] = section, name
                    parameters.append(_former_parameter(former, name, field, option))
        own = inspect.signature(command)
        kept = list(own.parameters.values())[1:]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values: dict[str, dict[str, Any]] = {}
            for name, section in owner.items():
                value = given.pop(name)
                if value is not None:
                    # Given by both names it stays under both, which the settings refuse.
                    called = now_called.get(name, name)
                    fields = values.setdefault(section, {})
                    fields[name if called in fields else called] = value
            command(values, **given)

        hints = typing.get_type_hints(command, include_extras=True)
        kept = [p.replace(annotation=hints.get(p.name, Any), kind=p.KEYWORD_ONLY) for p in kept]
        signature = inspect.Signature([*parameters, *kept], return_annotation=None)
        # `inspect.signature` reads this attribute; the annotations of functions do not declare it.
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
        # The wrapped command's own signature must not be found through the wrapper.
        del run.__wrapped__
        return run

    return decorate


def flag_of(name: str, value: object = None, params: Iterable[Any] = ()) -> str:
    """Write a setting as the command line has it, for texts: a `Spelling`, see `setting_names`.

    Args:
        name: the setting's name, such as `keep_misclassified`.
        value: its value in the text; None: the flag alone.
        params: the command's parameters (click's), which may spell it in their own way: `--logits` for `store_logits`. For a setting of
            another command the flag follows from the name.

    Examples:
        >>> flag_of("input_size"), flag_of("integers", "int8"), flag_of("deterministic", False)
        ('--input-size', '--integers int8', '--no-deterministic')
    """
    own = next((param for param in params if param.name == name), None)
    plain = name.replace("_", "-")
    flag = _first_flag(getattr(own, "opts", ())) or f"--{plain}"
    if value is None or value is True:
        return flag
    if value is False:
        return _first_flag(getattr(own, "secondary_opts", ())) or f"--no-{plain}"
    return f"{flag} {value}"


def _first_flag(spellings: Iterable[str]) -> str | None:
    """Return the first long option; an argument without dashes has none."""
    return next((spelling for spelling in spellings if spelling.startswith("--")), None)


def _with_flags_named(description: str) -> str:
    """A field's description for the help: settings in backticks, `range` or `range=lsq`, become flags. The text is the program's own."""
    return re.sub(r"`([a-z][a-z0-9_]*)(?:=([\w.,-]+))?`", lambda found: flag_of(found[1], found[2]), description)


def _parameter(name: str, field: FieldInfo, option: Callable[..., Any], section: str, note: str | None) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    kind = _plain_type(field.annotation)
    default = note if note is not None else _default(field)
    choices = _choices(field)
    description = _with_flags_named(field.description or "")
    told = set(re.findall(r"[\w-]+", description))
    remarks = [f"one of {', '.join(choices)}"] if not told.issuperset(choices) else []
    remarks += [f"default: {default}"] if default else []
    text = f"{description} ({'; '.join(remarks)})" if remarks else description
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    spelling = str(extra.get("flag", flag))
    # A list of names in place of the type would make the description's column too narrow.
    metavar = "<name>" if choices else None
    about: dict[str, Any] = {"help": text, "show_default": False, "rich_help_panel": section.capitalize(), "metavar": metavar}
    if choices and kind is str:
        about["autocompletion"] = lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]
    made = option(None, spelling, **about)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=made, annotation=kind | None)


def _former_parameter(former: str, name: str, field: FieldInfo, option: Callable[..., Any]) -> inspect.Parameter:
    """Make the option for a field's former name; the help does not show it."""
    made = option(None, f"--{former.replace('_', '-')}", help=f"Former name of {flag_of(name)}.", hidden=True)
    return inspect.Parameter(
        former, inspect.Parameter.KEYWORD_ONLY, default=made, annotation=_plain_type(field.annotation) | None
    )


def _choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the names that a field accepts: those of its type, or those that it lists beside other values (a user's file)."""
    kind = _plain_type(field.annotation)
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    listed = extra.get("choices", [])
    return tuple(str(name) for name in listed) if isinstance(listed, list) else ()


def _plain_type(annotation: Any) -> Any:
    """Return a type that a command line can parse: text for tuples and for one of several types, the base type for optional ones."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return _plain_type(parts[0]) if len(parts) == 1 else str
    return str if typing.get_origin(annotation) is tuple else annotation


def _default(field: FieldInfo) -> str:
    """Return the default as text; empty where the description states what happens without a value."""
    if field.default is PydanticUndefined or field.default is None:
        return ""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return "none" if field.default == () else str(field.default)
