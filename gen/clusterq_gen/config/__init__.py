"""Settings of a generator run, a file for each part. Free of torch. Presets go on top (`presets.py`)."""

from clusterq_gen.config.emission import EmitConfig
from clusterq_gen.config.method import GENERATOR_METHODS, MethodConfig, Units
from clusterq_gen.config.run import SECTIONS, GenConfig, Preset
from clusterq_gen.config.training import GeneratorConfig, TrainConfig

__all__ = [
    "GENERATOR_METHODS",
    "SECTIONS",
    "EmitConfig",
    "GenConfig",
    "GeneratorConfig",
    "MethodConfig",
    "Preset",
    "TrainConfig",
    "Units",
]
