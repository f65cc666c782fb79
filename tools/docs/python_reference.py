"""Python page of the documentation, for mkdocstrings to fill with docstrings and signatures.

It has exactly the names that `import clusterq` has; settings are listed with the descriptions that `--help` shows.
"""

import re
from typing import Any

from pydantic_core import PydanticUndefined

import clusterq as cq
from clusterq_common.settings import Settings

GROUPS = {
    "Teachers": ["load_teacher", "Teacher", "InputSpec", "batchnorm_taps", "ClassGroups"],
    "Shards": ["open_shards", "ShardSet", "ShardWriter", "normalise"],
    "Students": [
        "QuantConfig",
        "choose_bits",
        "convert",
        "calibrate",
        "Recipe",
        "finetune",
        "reconstruct",
        "distill",
        "load_student",
    ],
    "What comes out": ["open_images", "evaluate", "EvaluationResult", "integer_arithmetic", "export_onnx", "ClusterqError"],
}
# Classes whose fields are settings that people choose.
CHOSEN = ("QuantConfig", "Recipe")
# Documented members of other classes. By default, mkdocstrings would show everything that has a docstring.
MEMBERS = {
    "ShardSet": ["open", "split", "images", "as_webdataset"],
    "ShardWriter": ["add"],
    "QuantConfig": [],
    "Recipe": ["fast", "best", "paper", "calibrated"],
    "EvaluationResult": [],
}


def python_reference() -> str:
    """Return the page as Markdown."""
    listed = [name for names in GROUPS.values() for name in names]
    if sorted(listed) != sorted(cq.__all__):
        raise ValueError(f"clusterq.__all__ and this page differ in {sorted(set(listed) ^ set(cq.__all__))}")
    parts = [
        "# Python",
        "All that `import clusterq as cq` gives; [Use it from Python](python.md) shows it at work. Nothing prints unless `log` or `progress` is given, and "
        "a mistake is a `ClusterqError` with one sentence (of settings that do not fit, pydantic's `ValidationError`).",
    ]
    for title, names in GROUPS.items():
        parts.append(f"## {title}")
        for name in names:
            parts.append(_entry(name))
            if name in CHOSEN:
                parts.append(_settings(getattr(cq, name)))
    return "\n\n".join(parts) + "\n"


def _entry(name: str) -> str:
    lines = [f"::: clusterq.{name}"]
    if name in MEMBERS:
        lines += ["    options:", f"      members: {MEMBERS[name] or 'false'}"]
    return "\n".join(lines)


def _settings(model: type[Settings]) -> str:
    rows = ["| setting | default | |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        rows.append(f"| `{name}` | {_default(field.default)} | {_cell(field.description or '')} |")
    return "\n".join(rows)


def _default(value: Any) -> str:
    return "" if value is PydanticUndefined else f"`{value!r}`"


def _cell(text: str) -> str:
    """Return a description as Markdown that shows the same characters; the backticks around names of settings are left out."""
    text = text.replace("`", "")
    return re.sub(r"[\\*_\[\]{}<>#|^~&]", lambda found: f"&#{ord(found[0])};", text)
