"""Layers of a run by one numbering, and what each costs: as a table of the page, and as layers.csv."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clusterq_common.escape import csv_table
from clusterq_common.quantities import number, percent, size
from clusterq_common.setting_names import setting_name
from clusterq_report.html.blocks import Block, Paragraph, Table
from clusterq_report.run_data import RunData, real, rows, section, word

FLOAT_BITS = 32


@dataclass(frozen=True)
class Layers:
    """Layers of a run, from analysis.json; empty where nothing was measured.

    Attributes:
        analysis: its contents, see `measure/analysis.py`.
    """

    analysis: Mapping[str, Any]

    @classmethod
    def of(cls, source: RunData) -> "Layers":
        """Return the measurements of the present student and shards; those of other ones are ignored."""
        analysis, result = source.analysis, source.result
        student = section(result.get("student")).get("sha256")
        shards = source.manifest.digest if source.manifest else section(result.get("shards")).get("digest")
        same = student in (None, analysis.get("student")) and shards in (None, analysis.get("shards"))
        return cls(analysis if same else {})

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return one of the lists of analysis.json."""
        return rows(self.analysis.get(name))

    @cached_property
    def costed(self) -> list[dict[str, Any]]:
        """Convolutions and linear layers in order of first execution, with weights and multiply-adds where they were measured."""
        return self.rows("layers") or self.rows("outputs")

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Numbers of the layers, from 1 in order of execution. A BatchNorm layer has the number of the layer before it."""
        found: dict[str, int] = {}
        for place, row in enumerate(self.costed, start=1):
            found.setdefault(word(row.get("layer")), place)
            after = row.get("batchnorm")
            for name in after if isinstance(after, list) else []:
                found.setdefault(word(name), place)
        return found

    def label(self, name: str) -> str:
        """Return a layer as text, such as `3 (features.conv2)`."""
        return f"{self.numbers[name]} ({name})" if name in self.numbers else name

    def places(self, names: list[str]) -> list[int]:
        """Return the places of layers on an axis: their numbers, or the order of the list where one has no number."""
        if all(name in self.numbers for name in names):
            return [self.numbers[name] for name in names]
        return list(range(1, len(names) + 1))

    @cached_property
    def costs(self) -> list[dict[str, Any]]:
        """A row for each layer with what it costs and how exact it is. The names are those of the columns of layers.csv.

        A value is None where it is not known: errors without a student, bits of an input that has no quantizer of its own.
        """
        weights, inputs, outputs = (
            {word(row.get(key)): row for row in self.rows(name)}
            for name, key in (("weights", "layer"), ("activations", "site"), ("outputs", "layer"))
        )
        found = []
        for place, row in enumerate(self.costed, start=1):
            name = word(row.get("layer"))
            weight, given, output = weights.get(name, {}), inputs.get(name, {}), outputs.get(name, {})
            bits = real(weight.get("bits")) or (FLOAT_BITS if name in outputs else None)
            how_many = real(row.get("weights"))
            found.append(
                {
                    "number": place,
                    "layer": name,
                    "kind": word(row.get("kind"), ""),
                    "weights": how_many,
                    "multiply_adds": real(row.get("multiply_adds")),
                    "weight_bits": bits,
                    "input_bits": real(given.get("bits")),
                    "weight_bytes": None if bits is None or how_many is None else -(-how_many * bits // 8),
                    "output_db": real(output.get("sqnr")),
                    "weights_db": real(weight.get("sqnr_teacher")),
                    "rounding_db": real(weight.get("sqnr")),
                    "input_db": real(given.get("sqnr")),
                    "weights_beyond_grid": real(weight.get("clipped")),
                    "inputs_beyond_grid": real(given.get("clipped")),
                }
            )
        return found

    def stored_bytes(self) -> tuple[float, float] | None:
        """Return the bytes of these layers' weights at their bits and in float32, or None where they were not measured."""
        sizes = [(row["weight_bytes"], row["weights"]) for row in self.costs]
        known = [(stored, 4 * how_many) for stored, how_many in sizes if stored is not None and how_many is not None]
        return (sum(a for a, _ in known), sum(b for _, b in known)) if known and len(known) == len(sizes) else None


def cost_table(layers: Layers, file: str) -> list[Block]:
    """Return the table of costs, of which the CSV `file` has the same; empty where nothing was measured."""
    costs = layers.costs
    if not any(row["weights"] for row in costs):
        return []
    total, arithmetic = (sum(row[name] or 0 for row in costs) for name in ("weights", "multiply_adds"))
    heads = ["number", "layer", "weights", "% of all", "multiply-adds", "% of all", "weight bits", "input bits"]
    heads += ["output dB", "weights dB", "rounding dB", "input dB", "weights beyond grid", "inputs beyond grid"]
    listed = []
    for row in costs:
        figures = [
            number(row["weights"]),
            _share(row["weights"], total),
            number(row["multiply_adds"]),
            _share(row["multiply_adds"], arithmetic),
            *(number(row[name]) for name in ("weight_bits", "input_bits")),
            *(_decibel(row[name]) for name in ("output_db", "weights_db", "rounding_db", "input_db")),
            *(
                percent(None if row[name] is None else 100 * row[name])
                for name in ("weights_beyond_grid", "inputs_beyond_grid")
            ),
        ]
        listed.append([str(row["number"]), row["layer"], *figures])
    stored = layers.stored_bytes()
    text = f"{number(total)} weights and {number(arithmetic)} multiply-adds for an image."
    if stored is not None:
        text += f" The weights take {size(stored[0])} at their bits, {size(stored[1])} in float32."
    text += (
        " dB: signal to quantization noise, of the output (all errors so far), of the weights against the teacher's, of rounding alone, "
        "and of the input; a dash where there is no error, or no quantizer. Sort by a column: where many multiply-adds or weights meet few "
        f"dB, more bits ({setting_name('layer_bits')}) cost most and help most. {file} beside this page has the same."
    )
    return [Paragraph(text), Table(heads, listed, words=2, sortable=True)]


def costs_csv(layers: Layers) -> str:
    """Return the costs as CSV, numbers in full; empty where nothing was measured."""
    costs = layers.costs
    if not any(row["weights"] for row in costs):
        return ""
    return csv_table([{name: _plain(value) for name, value in row.items()} for row in costs])


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _share(value: float | None, whole: float) -> str:
    return percent(None if value is None or not whole else 100 * value / whole, 1)


def _decibel(value: float | None) -> str:
    return number(None) if value is None else f"{value:.1f}"
