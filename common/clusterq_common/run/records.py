"""The records of a metrics.jsonl. Free of torch, so that a report is drawn quickly."""

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line cut short by a crash is left out.

    Raises:
        ValueError: a line is no JSON.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
