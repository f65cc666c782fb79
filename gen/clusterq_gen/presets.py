"""Presets of generator training, and the merging of defaults, presets and flags into a configuration. Free of torch."""

from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name
from clusterq_common.settings import merged
from clusterq_gen.bank.config import BANK_METHODS, BANK_PRESETS, is_bank, method_of, refuse_meaningless
from clusterq_gen.config import SECTIONS, GenConfig, Preset, TrainConfig

# Each preset's changes to the settings' defaults, which are the paper's for CIFAR.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper-cifar": {},
    "paper-imagenet": {"train": {"batch_size": 16, "student_lr": 1e-6}, "emit": {"per_class": 200}},
    # On a short run, the paper's weights are too small for BatchNorm statistics and alignment: see docs/history.md. In the paper's
    # units the weight that suits one network is a hundred times too large for another.
    "quick": {
        "method": {"bns_units": "std", "alpha_bns": 10.0, "alpha_fda": 9.0, "alpha_de": 6.0, "alpha_spread": 5.0},
        # The paper's generator needs thousands of steps before the teacher sees the class asked for.
        "generator": {"conditioning": "scaled", "width": 64},
        "train": {"epochs": 16, "steps_per_epoch": 50, "warmup_epochs": 4, "batch_size": 100, "schedule": "cosine"},
        # Refinement makes up for the short training. Few images suffice, and each costs more than a generator's: docs/history.md.
        "emit": {"per_class": 128, "images": 2560, "refine_steps": 50},
    },
}

# A method's changes on top, by preset, as released. Left out: AdaDFQ's later drop of the learning rates on ImageNet, and Qimera's
# latent sizes, which are those of the teachers' last layers.
METHOD_PRESETS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "adadfq": {
        "paper-cifar": {"train": {"batch_size": 16, "warmup_epochs": 4}},
        "paper-imagenet": {"method": {"temperature": 5.0}, "train": {"student_lr": 1e-5}},
    },
    "qimera": {"paper-cifar": {"train": {"warmup_epochs": 4}}},
}


def preset_values(preset: str, method: str) -> dict[str, dict[str, Any]]:
    """Return a preset's changes to the defaults for a method: section -> field -> value."""
    return merged(PRESETS[preset], METHOD_PRESETS.get(method, {}).get(preset, {}))


def resolve(flags: dict[str, Any], preset: Preset, *, imagenet_sized: bool) -> GenConfig:
    """Merge the defaults, the preset, the method's changes to it and the given flags into a configuration.

    A method that trains no generator has its own presets.

    Args:
        flags: section -> field -> value.
        preset: `auto` is paper-imagenet for large inputs, else paper-cifar.
        imagenet_sized: whether the teacher's input has more than 64 pixels on its longer side.

    Raises:
        ClusterqError: a value is invalid, or the method ignores a given flag.
    """
    chosen = ("paper-imagenet" if imagenet_sized else "paper-cifar") if preset == "auto" else preset
    method = method_of(flags)
    base = merged(BANK_METHODS[method], BANK_PRESETS[chosen]) if is_bank(method) else preset_values(chosen, method)
    values = merged(base, flags)
    lift_limit(values, flags.get("emit", {}))
    refuse_meaningless(values, flags)
    # A shorter run keeps the preset's share of warm-up, unless the warm-up was given too.
    train = flags.get("train", {})
    if "epochs" in train and "warmup_epochs" not in train and not is_bank(method):
        whole = TrainConfig(**base.get("train", {}))
        values["train"]["warmup_epochs"] = train["epochs"] * whole.warmup_epochs // whole.epochs if train["epochs"] > 0 else 0
    if "teacher" not in values or "arch" not in values["teacher"]:
        raise ClusterqError(
            f"{setting_name('arch')} is missing, expected a pytorchcv model name or path/to/file.py:factory; "
            f"try {setting_name('arch', 'resnet18')}."
        )
    return GenConfig.validated({"preset": chosen, **values})


def lift_limit(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Remove the limit on all images together where only the number of images of each class was given.

    Args:
        values: section -> field -> value; its emission is changed in place.
        given: the emission's settings that the user gave.
    """
    if "per_class" in given and "images" not in given and isinstance(values.get("emit"), dict):
        values["emit"] = {**values["emit"], "images": None}


def preset_notes() -> dict[str, dict[str, str]]:
    """Return texts for the help on how presets and bank methods change a field's default: section -> field -> text."""
    notes: dict[str, dict[str, str]] = {}
    sources = [*PRESETS.items(), *BANK_METHODS.items()]
    sources += [(preset, {"bank": sections["bank"]}) for preset, sections in BANK_PRESETS.items() if "bank" in sections]
    sources += [(f"{preset} with {method}", v) for method, presets in METHOD_PRESETS.items() for preset, v in presets.items()]
    for source, sections in sources:
        for section, values in sections.items():
            for name, value in values.items():
                default = SECTIONS[section].model_fields[name].default
                shown = notes.setdefault(section, {}).setdefault(name, str(default))
                notes[section][name] = f"{shown}; {source}: {value}"
    return notes
