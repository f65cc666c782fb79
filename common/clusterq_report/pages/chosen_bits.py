"""Bits that a run chose for each layer: the aim, what came out, the students that were tried, and each layer's sensitivity."""

from typing import Any

from clusterq_common.quant.bits import FLOAT
from clusterq_common.quantities import number, size
from clusterq_report.html.blocks import Block, Heading, Paragraph, Table
from clusterq_report.pages.layers import Layers
from clusterq_report.run_data import RunData, real, rows, section, word

AIMS = {
    "average_bits": "weights of at most {} bits on average",
    "target_size": "a size of at most {}",
    "max_drop": "the smallest student that loses at most {} points",
    "average_input_bits": "layers' inputs of at most {} bits on average",
}


def in_words(source: RunData) -> str:
    """Return the bits of a student: as they were given, or the average of the weights' where they were chosen."""
    given = word(section(source.config.get("quant")).get("bits"))
    average = _average(source)
    return given if average is None else f"{average:.2f} bits of weights on average"


def tile(source: RunData) -> dict[str, str]:
    """Return the tile on bits."""
    average = _average(source)
    if average is None:
        return {"Bits": in_words(source)}
    widths = {bits for row in _layers(source) if (bits := real(row.get("weight_bits"))) is not None} - {FLOAT}
    ends = f" ({number(min(widths))} to {number(max(widths))})" if widths else ""
    return {"Bits chosen, weights": f"{average:.2f} on average{ends}"}


def choice_of_bits(source: RunData) -> list[Block]:
    """Return the section; empty where no bits were chosen."""
    choice = _found(source)
    if not choice:
        return []
    aims = [template.format(word(aim)) for name, template in AIMS.items() if (aim := _aim(choice, name)) is not None]
    text = f"Asked for: {'; '.join(aims)}." if aims else ""
    if (average := _average(source)) is not None:
        text += f" Chosen: weights of {average:.2f} bits on average"
        stored = real(choice.get("bytes"))
        text += "." if stored is None else f"; {size(stored)} with scales and float parameters."
    return [Paragraph(text.strip()), *_tried(choice), *_sensitivities(source)]


def _tried(choice: dict[str, Any]) -> list[Block]:
    listed = [
        [number(real(row.get("average_bits"))), _size(real(row.get("bytes"))), number(real(row.get("estimated_drop")))]
        for row in rows(choice.get("tried"))
    ]
    if not listed:
        return []
    text = "Points lost are estimated before training: the share of held-out synthetic images on which student and teacher name different classes."
    heads = ["bits on average", "size", "points lost, estimated"]
    return [Heading("Students that were tried"), Paragraph(text), Table(heads, listed, words=0, sortable=True)]


def _sensitivities(source: RunData) -> list[Block]:
    """Return the table of layers: what each costs and got, and the effect of its weights and of its input at each width."""
    layers = _layers(source)
    if not layers:
        return []
    numbers = Layers.of(source).numbers
    columns = [(name, width) for name in ("weight_kl", "input_kl") for width in _widths(layers, name)]
    heads = ["number", "layer", "bits", "weights", "weight bits", "input bits"]
    heads += [f"{'weights' if name == 'weight_kl' else 'input'} at {width}: KL" for name, width in columns]
    listed = []
    for place, row in enumerate(layers, start=1):
        name = word(row.get("name"))
        cells = [str(numbers.get(name, place)), name, "given" if row.get("given") is True else "chosen"]
        cells += [number(real(row.get(key))) for key in ("weights", "weight_bits", "input_bits")]
        listed.append([*cells, *(number(real(section(row.get(kind)).get(width))) for kind, width in columns)])
    text = (
        "KL, estimated on synthetic images: how far the network's output moves where this layer alone has so many bits and all others are in "
        "float. The choice adds these up. 32 bits: float."
    )
    return [Heading("Effect of each layer"), Paragraph(text), Table(heads, listed, words=3, sortable=True)]


def _widths(layers: list[dict[str, Any]], name: str) -> list[str]:
    found = {word(width) for row in layers for width in section(row.get(name))}
    return sorted((width for width in found if width.isascii() and width.isdigit() and len(width) <= 2), key=int)


def _found(source: RunData) -> dict[str, Any]:
    return section(source.result.get("bits"))


def _layers(source: RunData) -> list[dict[str, Any]]:
    return rows(_found(source).get("layers"))


def _average(source: RunData) -> float | None:
    """Return the average bits of the weights; None where none were chosen."""
    choice = _found(source)
    chosen = any(_aim(choice, name) is not None for name in ("average_bits", "target_size", "max_drop"))
    return real(choice.get("average_weight_bits")) if chosen else None


def _aim(choice: dict[str, Any], name: str) -> Any:
    return section(choice.get("aim")).get(name)


def _size(stored: float | None) -> str:
    return number(None) if stored is None else size(stored)
