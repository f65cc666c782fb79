"""Weights within a checkpoint as training programs leave them: which of its dicts are weights, and what stands before their names."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name

DEPTH = 4
NAMES_SHOWN = 6
# More than a choice between them needs.
MOST_FITS = 4
# Buffers that profilers leave in a network (thop).
PROFILERS = ("total_ops", "total_params")

# What keeps a state dict from fitting the architecture, in words; empty where it fits.
Complaint = Callable[[Mapping[str, Tensor]], str]


def choose_weights(
    loaded: object, complaint: Complaint, source: str, key: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Find the weights that fit an architecture in what a file holds.

    A state dict may lie at any key (`state_dict`, `model`, `model_ema`, ...), and any prefix may stand before its names (`module.`,
    `_orig_mod.`, `model.`, also several). Entries without that prefix are left out, unless they are weights that fit, too.

    Args:
        loaded: the file's content.
        complaint: says why a state dict does not fit; empty where it fits.
        source: the file, for errors.
        key: where the weights lie, with dots between keys, and behind them the prefix where there is a choice; None: looked for.

    Returns:
        The state dict with the architecture's names, and a sentence for each choice made.

    Raises:
        ClusterqError: nothing fits, or several state dicts do.
    """
    by_place = dict(_state_dicts(loaded))
    if key is not None:
        places = {place: state for place, state in by_place.items() if place == key or not place or key.startswith(f"{place}.")}
        by_place = {key: by_place[key]} if key in by_place else places
    if not by_place and key is None:
        raise ClusterqError(
            f"{source} holds {_kind(loaded)} and no state dict of tensors; save it with torch.save(model.state_dict(), ...).",
            setting="weights",
        )
    fitting = {
        _joined(place, candidate.prefix): (place, candidate)
        for place, state in by_place.items()
        for candidate in _fits(state, complaint)
    }
    if key is not None and key not in by_place:
        if key not in fitting:
            known = dict.fromkeys([*(place for place, _ in _state_dicts(loaded)), *fitting])
            raise ClusterqError(
                f"{source} has no weights at {key!r}, expected one of {_listed(known)}; choose one of these.",
                setting="weights_key",
            )
        fitting = {key: fitting[key]}
    if not fitting:
        place, state = max(by_place.items(), key=lambda item: len(item[1]))
        where = f"; its weights lie at {_listed(by_place)}" if len(by_place) > 1 or place else ""
        raise ClusterqError(
            f"{source} does not fit the architecture: {complaint(state)}{where}; check {setting_name('arch')} and the file.",
            setting="weights",
        )
    if len(fitting) > 1 and not _all_equal([candidate.state for _, candidate in fitting.values()]):
        raise ClusterqError(
            f"{source} holds several weights that fit, at {_listed(fitting)}, expected one; say which with {setting_name('weights_key')}, for example "
            f"{setting_name('weights_key', next(iter(fitting)))}.",
            setting="weights",
        )
    place, candidate = next(iter(fitting.values()))
    remarks = [f"weights are taken from {place!r} in {source}"] if place and key is None else []
    return candidate.state, [*remarks, *([remark] if (remark := candidate.remark(by_place[place])) else [])]


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


class _Fit(NamedTuple):
    """Weights with the architecture's names: those of a state dict that begin with a prefix, without it."""

    prefix: str
    state: dict[str, Tensor]

    def remark(self, whole: Mapping[str, Tensor]) -> str:
        """A sentence on what was done to get there; empty for nothing."""
        dropped = [name for name in whole if not name.startswith(self.prefix) or name.endswith(PROFILERS)]
        parts = [f"{self.prefix!r} is taken off the names of the weights"] if self.prefix else []
        parts += [f"{len(dropped)} entries are left out: {_listed(dropped)}"] if dropped else []
        return "; ".join(parts)


def _fits(state: Mapping[str, Tensor], complaint: Complaint) -> Iterator[_Fit]:
    """The first few sets of weights in a state dict that fit, as of a network and its moving average beside each other."""
    rest = dict(state)
    for _ in range(MOST_FITS):
        if (fit := _first_fit(rest, complaint)) is None:
            return
        yield fit
        rest = {name: value for name, value in rest.items() if not name.startswith(fit.prefix)}


def _first_fit(state: Mapping[str, Tensor], complaint: Complaint) -> _Fit | None:
    for prefix in ("", *_prefixes(state)):
        under = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        own = {name: value for name, value in under.items() if not name.endswith(PROFILERS)}
        if own and not complaint(own):
            return _Fit(prefix, own)
    return None


def _joined(place: str, prefix: str) -> str:
    return ".".join(part for part in (place, prefix.rstrip(".")) if part)


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
