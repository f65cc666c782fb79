"""The base of every settings model: strict, immutable, and readable from and to YAML."""

import re
from pathlib import Path
from reprlib import Repr
from typing import Any, Self

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from clusterq_common.documents import LARGEST_YAML, parse_yaml
from clusterq_common.errors import ClusterqError, did_you_mean
from clusterq_common.files import atomic_write
from clusterq_common.setting_names import in_a_command, setting_name

# Of a value that does not fit, in an error.
LONGEST_FOUND = 200


class Settings(BaseModel):
    """Base class of settings: strict and immutable.

    Unknown keys are refused, values never change after construction.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def validated(cls, values: dict[str, Any], *, source: str = "") -> Self:
        """Build from nested dictionaries.

        Args:
            values: section -> field -> value.
            source: what the values came from, named in the error (a file; empty for a command line or arguments).

        Raises:
            ClusterqError: naming the first setting or key that does not fit, what was found and what was expected.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _refusal(error, source) from error

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a saved configuration.

        Raises:
            ClusterqError: the file is missing, is no YAML mapping, or holds values that do not fit.
        """
        return cls.validated(read_yaml(path), source=str(path))

    def to_yaml(self, path: Path) -> None:
        """Write every value, defaults included, as YAML (atomically)."""
        atomic_write(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def sections_of(model: type[Settings]) -> dict[str, type[Settings]]:
    """Return the sections of a configuration: its fields that are settings themselves, by name, in order."""
    kinds = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Settings)}


def read_yaml(path: Path, *, aliases: bool = False) -> dict[str, Any]:
    """A YAML mapping from a local file; `aliases` as in `parse_yaml`.

    Raises:
        ClusterqError: the file is missing, unreadable, or no mapping.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_YAML:
            raise ClusterqError(f"{path} has {size} bytes, expected at most {LARGEST_YAML}; use a run's config.yaml.")
        values = parse_yaml(path.read_text(encoding="utf-8"), aliases=aliases)
    except FileNotFoundError as error:
        raise ClusterqError(f"{path} does not exist; expected a saved configuration (config.yaml of a run).") from error
    except OSError as error:
        raise ClusterqError(f"{path} cannot be read ({error.strerror}); expected a saved configuration.") from error
    except UnicodeDecodeError as error:
        raise ClusterqError(f"{path} is not readable as YAML (it is no UTF-8); use a run's config.yaml.") from error
    except ValueError as error:
        raise ClusterqError(f"{path} is not readable as YAML ({error}); use a run's config.yaml.") from error
    if not isinstance(values, dict):
        raise ClusterqError(f"{path} holds {type(values).__name__}, expected a YAML mapping; use a run's config.yaml.")
    return values


def need_sections(model: type[Settings], values: dict[str, Any], source: Path) -> None:
    """Make sure that what a file gives for a section of a configuration is one, so that flags can be laid on top.

    Raises:
        ClusterqError: a list, a word or nothing in the place of a section.
    """
    for section in sections_of(model):
        if section in values and not isinstance(values[section], dict):
            raise ClusterqError(
                f"{source}: {section} is {type(values[section]).__name__}, expected a section of settings; use a run's config.yaml."
            )


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` laid on top, section by section; neither is changed."""
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result


def former_names(field: FieldInfo) -> tuple[str, ...]:
    """Names that a field had in earlier versions. They are still read, from files and command lines, and written nowhere."""
    alias = field.validation_alias
    return tuple(str(name) for name in alias.choices[1:]) if isinstance(alias, AliasChoices) else ()


def under_present_names(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Return values of a model, nested as in its files, with present names in place of former ones, so that others can be laid on top.

    Where a file has both, both stay: the model then refuses the former one.
    """
    result = dict(values)
    for name, field in model.model_fields.items():
        for former in former_names(field):
            if former in result and name not in result:
                result[name] = result.pop(former)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(result.get(name), dict):
            result[name] = under_present_names(inner, result[name])
    return result


def _shown(value: object) -> str:
    """A value in an error: the beginning of it, however large it is."""
    short = Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, LONGEST_FOUND, LONGEST_FOUND, LONGEST_FOUND
    return short.repr(value)


def _refusal(error: ValidationError, source: str) -> ClusterqError:
    first = error.errors()[0]
    # Of a list's element, the list's name.
    name = next((part for part in reversed(first["loc"]) if isinstance(part, str)), "settings")
    place = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    # A validator may have found a name that is near; what it says comes last.
    reason, hint, near = reason.partition("; did you mean ")
    meant = hint + near
    if first["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        reason = f"must be one of {', '.join(choices)}"
        meant = did_you_mean(first["input"], choices) if isinstance(first["input"], str) else ""
    shown = "" if first["type"] == "missing" or isinstance(first["input"], dict) else f" (found {_shown(first['input'])})"
    if source:
        advice = "; correct it there, or get the file again"
    else:
        advice = in_a_command(f"; see {setting_name('help')} for the accepted values")
    sentence = f"{reason[:1].lower()}{reason[1:]}{shown}" + (meant or f"{advice}.")
    return ClusterqError(f"{source}: {place}: {sentence}") if source else ClusterqError(sentence, setting=name)
