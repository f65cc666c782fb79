"""Settings for a target: its choices below what the user gives, and a refusal of what it cannot run. Free of torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import Format, OnnxConfig
from clusterq_common.export.onnx_types import NARROWEST, stored_bits
from clusterq_common.export.targets import TARGETS, Choice, TargetName
from clusterq_common.quant.bits import FLOAT
from clusterq_common.quant.config import QuantConfig
from clusterq_common.setting_names import setting_name


def quant_for(name: TargetName, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the quantizer settings for a target: its choices, and the given values on top.

    Raises:
        ClusterqError: the target cannot run one of them.
    """
    values = _on_top(name, TARGETS[name].quant, given)
    refuse_bits(name, QuantConfig.validated(values))
    return values


def file_for(name: TargetName, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's settings for a target, likewise."""
    return _on_top(name, TARGETS[name].file, given)


def format_for(name: TargetName | None, given: Format | None) -> Format:
    """Return the format of the file: the given one, else the target's first, else onnx.

    Raises:
        ClusterqError: the target reads no such file.
    """
    if name is None:
        return given or "onnx"
    formats = TARGETS[name].formats
    if given is not None and given not in formats:
        raise ClusterqError(
            f"{given} is no file for {TARGETS[name].runtime}, expected {' or '.join(formats)} for {setting_name('target', name)}; leave it out.",
            setting="format",
        )
    return given or formats[0]


def refuse_bits(name: TargetName, quant: QuantConfig) -> None:
    """Raise ClusterqError where a target has no type for activations of these bits; float stays float."""
    types = TARGETS[name].activation_types
    widths = [("bits", quant.parsed_bits.activations), *(("layer_bits", bits.activations) for _, bits in quant.layer_rules)]
    if quant.first_last_bits is not None:
        widths.append(("first_last_bits", quant.first_last_bits))
    for setting, bits in widths:
        if types is not None and bits not in {*types, FLOAT}:
            wanted = " or ".join(str(one) for one in types)
            raise ClusterqError(
                f"activations of {bits} bits do not run on {TARGETS[name].runtime}, expected {wanted} bits for {setting_name('target', name)}; "
                "use those, or choose another target.",
                setting=setting,
            )


def refuse_student(name: TargetName, quant: QuantConfig, weights: Iterable[int], config: OnnxConfig) -> None:
    """Raise ClusterqError where a target cannot run a student that was made with other settings, or the types of its file.

    Args:
        name: the target.
        quant: settings of the student.
        weights: bits of its weights.
        config: settings of the file.
    """
    target = TARGETS[name]
    refuse_bits(name, quant)
    for setting, choice in target.quant.items():
        found = getattr(quant, setting)
        if choice.only and found not in choice.only:
            raise ClusterqError(
                f"it was made with {setting} {_shown(found)}, which {target.runtime} does not run ({choice.why}), expected "
                f"{_shown(choice.value)}; fine-tune with {setting_name('target', name)}.",
                setting="student",
            )
    for bits in sorted(set(weights)):
        if stored_bits(bits, config.integers) not in target.weight_types:
            fitting = [way for way in NARROWEST if stored_bits(bits, way) in target.weight_types]
            raise ClusterqError(
                f"{config.integers} stores weights of {bits} bits in a type of {stored_bits(bits, config.integers)} bits, which "
                f"{target.runtime} does not have, expected {' or '.join(fitting)} for {setting_name('target', name)}; use that.",
                setting="integers",
            )


def slower_settings(name: TargetName, quant: QuantConfig) -> list[str]:
    """Return a sentence for each setting of the student that slows it down on the target."""
    return [
        f"{setting} is {_shown(getattr(quant, setting))}, for {setting_name('target', name)} better {_shown(choice.value)}: {choice.why}"
        for setting, choice in TARGETS[name].quant.items()
        if not choice.only and not choice.counted and getattr(quant, setting) != choice.value
    ]


def counts_float_convolutions(name: TargetName) -> bool:
    """Return whether the export for a target says which convolutions are left in float."""
    return any(choice.counted for choice in TARGETS[name].quant.values())


def stored_wider(name: TargetName, weights: int, given: Mapping[str, Any]) -> str | None:
    """Return a sentence where a target stores weights of so many bits in a wider type than they need; None where it does not.

    Args:
        name: the target.
        weights: bits of the weights.
        given: the user's values of `OnnxConfig`.
    """
    if weights == FLOAT:
        return None
    stored = stored_bits(weights, OnnxConfig.validated(file_for(name, given)).integers)
    if stored <= stored_bits(weights, "packed"):
        return None
    choice = TARGETS[name].file.get("integers")
    narrower = [
        way
        for way in NARROWEST
        if stored_bits(weights, way) < stored
        and stored_bits(weights, way) in TARGETS[name].weight_types
        and (choice is None or not choice.only or way in choice.only)
    ]
    ways = " or ".join(setting_name("integers", way) for way in narrower)
    advice = f"{ways} makes the file smaller and slower" if ways else f"{TARGETS[name].runtime} takes no narrower type"
    return f"weights of {weights} bits are stored in {stored}; {advice}."


def name_and_status(name: TargetName) -> str:
    """Return what a file says of its target: its name, and whether it was tried."""
    return f"{name} ({TARGETS[name].status})"


def target_help() -> str:
    """Return the targets, each with its runtime and status, as text."""
    return "; ".join(f"{name}: {target.runtime}, {target.status}" for name, target in TARGETS.items())


def _on_top(name: TargetName, choices: Mapping[str, Choice], given: Mapping[str, Any]) -> dict[str, Any]:
    for setting, choice in choices.items():
        if choice.only and setting in given and given[setting] not in choice.only:
            raise ClusterqError(
                f"{_shown(given[setting])} does not run on {TARGETS[name].runtime} ({choice.why}), expected "
                f"{' or '.join(_shown(value) for value in choice.only)} for {setting_name('target', name)}; leave it out.",
                setting=setting,
            )
    return {**{setting: choice.value for setting, choice in choices.items()}, **given}


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
