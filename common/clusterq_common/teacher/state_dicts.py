"""Weights within a checkpoint as training programs leave them: which of its dicts are weights, and what stands before their names."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name

DEPTH = 4
NAMES_SHOWN = 6
# Buffers that profilers leave in a network (thop).
PROFILERS = ("total_ops", "total_params")

# What keeps a state dict from fitting the architecture, in words; empty where it fits.
Complaint = Callable[[Mapping[str, Tensor]], str]


def choose_weights(
    loaded: object, complaint: Complaint, source: str, key: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Find the weights that fit an architecture in what a file holds.

    A state dict may lie at any key (`state_dict`, `model`, `model_ema`, ...), and any prefix may stand before its names (`module.`,
    `_orig_mod.`, `model.`, also several). Entries without that prefix are left out.

    Args:
        loaded: the file's content.
        complaint: says why a state dict does not fit; empty where it fits.
        source: the file, for errors.
        key: where the weights lie, with dots between keys; None: looked for.

    Returns:
        The state dict with the architecture's names, and a sentence for each choice made.

    Raises:
        ClusterqError: nothing fits, or several state dicts do.
    """
    found = dict(_state_dicts(loaded))
    if key is not None:
        if key not in found:
            raise ClusterqError(
                f"{source} has no weights at {key!r}, expected one of {_listed(found)}; choose one of these.",
                setting="weights_key",
            )
        found = {key: found[key]}
    if not found:
        raise ClusterqError(
            f"{source} holds {_kind(loaded)} and no state dict of tensors; save it with torch.save(model.state_dict(), ...).",
            setting="weights",
        )
    fitting = {place: fitted for place, state in found.items() if (fitted := _stripped(state, complaint)) is not None}
    if not fitting:
        place, state = max(found.items(), key=lambda item: len(item[1]))
        where = f"; its weights lie at {_listed(found)}" if len(found) > 1 or place else ""
        raise ClusterqError(
            f"{source} does not fit the architecture: {complaint(state)}{where}; check {setting_name('arch')} and the file.",
            setting="weights",
        )
    if len(fitting) > 1 and not _all_equal([state for state, _ in fitting.values()]):
        raise ClusterqError(
            f"{source} holds several weights that fit, at {_listed(fitting)}, expected one; say which with {setting_name('weights_key')}, for example "
            f"{setting_name('weights_key', next(iter(fitting)))}.",
            setting="weights",
        )
    place, (state, remark) = next(iter(fitting.items()))
    remarks = [f"weights are taken from {place!r} in {source}"] if place and key is None else []
    return state, [*remarks, *([remark] if remark else [])]


def _state_dicts(loaded: object, place: str = "", depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict of tensors in nested dicts, with its keys joined by dots. Other values beside tensors are no part of it."""
    if not isinstance(loaded, Mapping) or depth == 0:
        return
    tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for name, value in loaded.items():
        if isinstance(name, str):
            yield from _state_dicts(value, f"{place}.{name}" if place else name, depth - 1)


def _stripped(state: Mapping[str, Tensor], complaint: Complaint) -> tuple[dict[str, Tensor], str] | None:
    """The state dict with the architecture's names, and what was done to get there; None where nothing helps."""
    for prefix in ("", *_prefixes(state)):
        under = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        own = {name: value for name, value in under.items() if not name.endswith(PROFILERS)}
        if own and not complaint(own):
            dropped = [name for name in state if not name.startswith(prefix) or name.endswith(PROFILERS)]
            parts = [f"{prefix!r} is taken off the names of the weights"] if prefix else []
            parts += [f"{len(dropped)} entries are left out: {_listed(dropped)}"] if dropped else []
            return own, "; ".join(parts)
    return None


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """All beginnings of names up to a dot, those of most names first and the shorter ones first."""
    counts: dict[str, int] = {}
    for name in state:
        parts = name.split(".")
        for length in range(1, min(len(parts), DEPTH + 1)):
            prefix = ".".join(parts[:length]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix)))[:32]


def _all_equal(states: list[dict[str, Tensor]]) -> bool:
    first, *others = states
    # A small file may hold tensors of any shape, in counters that no shape is asked of: their values must not be touched.
    if not all(_is_stored(value) for state in states for value in state.values()):
        return False
    return all(
        state.keys() == first.keys() and all(torch.equal(state[name], first[name]) for name in first) for state in others
    )


def _is_stored(value: Tensor) -> bool:
    """Return whether memory holds each of a tensor's values."""
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _listed(names: Any) -> str:
    shown = [repr(name) if name else "its top" for name in names]
    more = f" and {len(shown) - NAMES_SHOWN} more" if len(shown) > NAMES_SHOWN else ""
    return f"{', '.join(shown[:NAMES_SHOWN])}{more}"


def _kind(loaded: object) -> str:
    if isinstance(loaded, Mapping):
        kinds = sorted({type(value).__name__ for value in loaded.values()})
        return f"a dict of {', '.join(kinds[:NAMES_SHOWN]) or 'nothing'}"
    return f"a {type(loaded).__name__}"
