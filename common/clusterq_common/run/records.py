"""Records of a metrics.jsonl. Free of torch, so that a report is drawn quickly."""

import json
from pathlib import Path
from typing import Any

from clusterq_common.errors import ClusterqError


def read_metrics(path: Path, *, advice: str = "get the run again") -> list[dict[str, Any]]:
    """Return the records of a metrics file that have a step. A last line cut short by a crash is left out.

    Args:
        path: the file.
        advice: the end of an error's sentence.

    Raises:
        ClusterqError: a line is no JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        records = [json.loads(line) for line in lines[:-1] if line]
    except (ValueError, RecursionError) as error:
        raise ClusterqError(
            f"{path} has a line that is no JSON ({type(error).__name__}), expected one object a line; {advice}."
        ) from error
    return [record for record in records if isinstance(record, dict) and isinstance(record.get("step"), int | float)]
