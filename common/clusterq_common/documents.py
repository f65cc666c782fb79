"""JSON and YAML that someone else may have written: bounded in size, in depth and in what a few lines unfold to."""

import json
from pathlib import Path
from typing import Any

import yaml

from clusterq_common.errors import ClusterqError

# config.yaml has some kilobytes; reading YAML takes seconds a megabyte.
LARGEST_YAML = 1 << 18
# Far above what any run writes: a file beyond it was made to fill the memory, in which a list of nothing takes thirty times its two characters.
LARGEST_JSON = 32 << 20
MOST_VALUES = 1 << 22
MOST_LISTS = 1 << 18
DEEPEST = 32


def read_json(path: Path, *, what: str, largest: int = LARGEST_JSON, deepest: int | None = DEEPEST) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: the end of a sentence that begins with "expected".
        largest: bytes, at most.
        deepest: how deep lists and dictionaries may lie in each other; None for callers that never walk through all of a value.

    Raises:
        ClusterqError: it cannot be read, is too large, holds too many values, is no JSON, or nested too deeply.
    """
    try:
        size = path.stat().st_size
        if size > largest:
            raise ClusterqError(f"{path} has {size} bytes, expected at most {largest}; do not use it.")
        data = path.read_bytes()
        if holds_too_many(data):
            raise ClusterqError(
                f"{path} has more than {MOST_VALUES} commas or {MOST_LISTS} opening brackets, expected {what}; do not use it."
            )
        values = json.loads(data)
    except OSError as error:
        raise ClusterqError(f"{path} cannot be read ({error.strerror}), expected {what}; check the path.") from error
    except (ValueError, RecursionError) as error:
        raise ClusterqError(f"{path} is no JSON ({type(error).__name__}), expected {what}; get it again.") from error
    if deepest is not None and is_nested_deeper(values, deepest):
        raise ClusterqError(f"{path} is nested more than {deepest} deep, expected {what}; get it again.")
    return values


def holds_too_many(data: bytes) -> bool:
    """Return whether JSON has more values, lists or mappings than any that clusterq writes."""
    return data.count(b",") > MOST_VALUES or data.count(b"[") + data.count(b"{") > MOST_LISTS


def parse_yaml(text: str, *, aliases: bool = False) -> Any:
    """Parse a YAML document of plain scalars, lists and mappings.

    Args:
        text: the document.
        aliases: whether lists and mappings may stand in several places, which folds gigabytes into a few lines; for callers that never
            walk through all of a value.

    Raises:
        ValueError: it is none, or uses aliases where they are not allowed; or it is nested too deeply.
    """
    try:
        return yaml.load(text, _SharingLoader if aliases else _PlainLoader)  # a SafeLoader that knows less
    except _UnusualError:
        raise
    except Exception as error:  # PyYAML lets anything through where a tag and its value do not fit
        raise ValueError(type(error).__name__) from error


def is_nested_deeper(value: Any, deepest: int) -> bool:
    """Return whether lists and dictionaries are nested more than `deepest` deep."""
    level = [value]
    for _ in range(deepest + 1):
        parts = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        if not parts:
            return False
        level = [item for part in parts for item in part]
    return True


class _UnusualError(ValueError):
    """Parse error whose message is shown unchanged."""


class _PlainLoader(yaml.SafeLoader):
    """YAML loader that refuses aliases and deep nesting while reading, before anything is built."""

    depth = 0
    aliases = False

    def compose_node(self, parent: Any, index: Any) -> Any:
        if not self.aliases and self.check_event(yaml.AliasEvent):
            raise _UnusualError("it uses aliases")
        if self.depth > DEEPEST:
            raise _UnusualError(f"it is nested more than {DEEPEST} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _SharingLoader(_PlainLoader):
    """YAML loader that refuses merge keys, which copy what they name."""

    aliases = True

    def flatten_mapping(self, node: Any) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise _UnusualError("it uses merge keys")
