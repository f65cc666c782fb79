"""History of a set, step by step, from its manifest."""

from dataclasses import dataclass
from typing import Any

from clusterq_common.shards.manifest import GIVEN, Derivation, Generation, Manifest


@dataclass(frozen=True)
class Step:
    """One step of a set's history, such as an emission or a merge.

    Attributes:
        depth: 0 for the set itself, 1 for the sets that it was made from, and so on.
        set: digest of the set as it is now, which a later step may have extended.
        what: `emitted`, `extended`, `given`, or `merge`, `subset`, `repair`.
        how: the rest in words.
    """

    depth: int
    set: str
    what: str
    how: str


def history(manifest: Manifest) -> list[Step]:
    """Return all steps, the first one first. A set made from others follows them, and they are one level deeper."""
    known = {parent.digest: (parent.generation, parent.derivation) for parent in manifest.parents}
    known[manifest.digest] = (manifest.generation, manifest.derivation)
    steps: list[Step] = []
    _add(steps, manifest.digest, known, 0, frozenset())
    return steps


def _add(
    steps: list[Step],
    digest: str,
    known: dict[str, tuple[Generation | None, Derivation | None]],
    depth: int,
    above: frozenset[str],
) -> None:
    generation, derivation = known.get(digest, (None, None))
    if generation is not None:
        steps += _made(generation, digest, depth)
    elif derivation is None:
        steps.append(Step(depth, digest, "unknown", "the manifest does not say"))
    else:
        told = {step.set for step in steps}
        for parent in derivation.inputs:
            # A manifest may say that a set comes from itself, or from one set by many ways.
            if parent not in above | {digest} and parent not in told:
                _add(steps, parent, known, depth + 1, above | {digest})
                told.add(parent)
        settings = ", ".join(
            f"{name} {value}" for name, value in derivation.settings.items() if value not in (None, False, 0.0)
        )
        sets = f"{len(derivation.inputs)} set{'s' if len(derivation.inputs) != 1 else ''}"
        steps.append(Step(depth, digest, derivation.operation, f"of {sets}{': ' + settings if settings else ''}"))


def _made(made: Generation, digest: str, depth: int) -> list[Step]:
    if made.method == GIVEN:
        return [Step(depth, digest, "given", f"{made.candidates} images that clusterq did not make")]
    steps = []
    for number, counts in enumerate(made.rounds):
        asked = ", ".join(f"{count} {split}" for split, count in counts.items())
        what = "extended" if number else "emitted"
        by = f" by {made.method}, seed {made.seed}" if not number else ""
        steps.append(Step(depth, digest, what, f"{asked} images of each class{by}"))
    return steps


def lines(manifest: Manifest) -> list[str]:
    """Return the history as lines for a terminal."""
    return [f"{'  ' * step.depth}{step.what:<9} {step.how} ({step.set[:19]})" for step in history(manifest)]


def as_json(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the history as JSON-ready values."""
    return [vars(step) for step in history(manifest)]
