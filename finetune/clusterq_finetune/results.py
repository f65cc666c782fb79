"""result.json of a fine-tuning: reading it, and many of them as a table. Free of torch."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from clusterq_common.documents import read_json
from clusterq_common.errors import ClusterqError
from clusterq_common.escape import csv_table, markdown
from clusterq_common.run.run_folder import RESULT
from clusterq_report.pages.comparison import rows_report

NEEDED = ("teacher", "shards", "student", "settings", "threads")
# What the values are that other commands go by, where they are there.
SHAPE: dict[str, type] = {
    "teacher": dict,
    "shards": dict,
    "student": dict,
    "teacher.arch": str,
    "teacher.digest": str,
    "shards.digest": str,
    "shards.method": str,
    "student.sha256": str,
    "settings": dict,
    "threads": int,
    "versions": dict,
    "processes": int,
}
# What differs between runs that are repeats of each other, or says nothing about the recipe.
NOT_RECIPE = ("workers", "checkpoint_seconds")


def read_result(path: Path, *needed: str) -> dict[str, Any]:
    """A result.json, or the one in a folder; `needed` are values that it must have, as "teacher.digest".

    Raises:
        ClusterqError: there is none, or it is no finished fine-tuning's.
    """
    file = path / RESULT if path.is_dir() else path
    values = read_json(file, what=f"the {RESULT} of a finished fine-tuning")
    missing = [name for name in NEEDED if not isinstance(values, dict) or name not in values]
    if missing:
        raise ClusterqError(f"{file} has no {missing[0]}, expected the {RESULT} of a finished fine-tuning; run it again.")
    for place, kind in SHAPE.items():
        name, _, part = place.partition(".")
        holder, key = (values[name], part) if part else (values, name)
        value = holder.get(key)
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits and (key in holder or place in needed):
            raise ClusterqError(f"{file} has no usable {place}, expected the {RESULT} of a finished fine-tuning; run it again.")
    return dict(values)


def compare(paths: list[Path]) -> list[dict[str, Any]]:
    """Return one row for each teacher, method, bits, quantizer and recipe; runs that differ in seed alone share a row.

    Raises:
        ClusterqError: a path without a result.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        result = read_result(path)
        try:
            _row([result])
            groups.setdefault(json.dumps(_kind(result), sort_keys=True), []).append(result)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ClusterqError(
                f"{path} lacks what a table is made of ({type(error).__name__}: {error}), expected the {RESULT} of a finished "
                "fine-tuning; run it again."
            ) from error
    return [_row(results) for results in groups.values()]


def _kind(result: dict[str, Any]) -> dict[str, Any]:
    settings = result["settings"]
    recipe = {name: value for name, value in settings["recipe"].items() if name not in NOT_RECIPE}
    return {
        "teacher": result["teacher"]["digest"],
        "method": result["shards"]["method"],
        "images": result["shards"]["training_images"],
        "quant": settings["quant"],
        "recipe": recipe,
        "evaluated": "top1" in result["student"],
        "on": result["student"].get("images"),
    }


def _row(results: list[dict[str, Any]]) -> dict[str, Any]:
    first = results[0]
    quant, recipe = first["settings"]["quant"], first["settings"]["recipe"]
    ends = quant["first_last_bits"] or "same"
    row: dict[str, Any] = {
        "teacher": first["teacher"]["arch"],
        "method": first["shards"]["method"],
        "images": first["shards"]["training_images"],
        "bits": " + ".join([quant["bits"], *quant.get("layer_bits", [])]),
        "first/last": ends,
        "quantizer": f"{quant['quantizer']}, {quant['range']}",
        "sites": quant["activation_sites"],
        "recipe": f"{recipe.get('recipe', 'fast')}, {recipe['epochs']} epochs, lr {recipe['lr']:g}, CE {recipe['ce_weight']:g}, KL {recipe['kl_weight']:g}",
        "seeds": ", ".join(sorted({str(result["settings"]["runtime"]["seed"]) for result in results}, key=int)),
        "sets": len({result["shards"]["digest"] for result in results}),
        "runs": len(results),
        "teacher top-1": None,
        "calibrated top-1": None,
        "student top-1": None,
        "student balanced": None,
        "spread": None,
        "below teacher": None,
    }
    if "top1" in first["student"]:
        top1 = [result["student"]["top1"] for result in results]
        teacher = first["teacher"]["top1"]
        row |= {
            "teacher top-1": round(teacher, 2),
            "calibrated top-1": round(mean(result["calibrated"]["top1"] for result in results), 2),
            "student top-1": round(mean(top1), 2),
            "student balanced": _balanced(results),
            "spread": round(stdev(top1), 2) if len(top1) > 1 else None,
            "below teacher": round(teacher - mean(top1), 2),
        }
    return row


def _balanced(results: list[dict[str, Any]]) -> float | None:
    """Mean balanced accuracy of the students; None where a result is from before it was measured."""
    values = [result["student"].get("balanced_accuracy") for result in results]
    return None if None in values else round(mean(values), 2)


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A table for a README."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join("" if row[name] is None else markdown(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def as_json(rows: list[dict[str, Any]]) -> str:
    """The rows for a program."""
    return json.dumps(rows, indent=2) + "\n"


def as_html(rows: list[dict[str, Any]]) -> str:
    """The rows as charts and a table, for a browser."""
    return rows_report(rows).html()


FORMATS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    ".md": as_markdown,
    ".csv": csv_table,
    ".json": as_json,
    ".html": as_html,
}
