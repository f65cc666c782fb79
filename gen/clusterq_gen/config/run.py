"""Settings of a whole generator run."""

from typing import Literal

from pydantic import Field

from clusterq_common.device.config import OutputConfig, RuntimeConfig
from clusterq_common.quant.config import QuantConfig
from clusterq_common.settings import Settings, sections_of
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_gen.bank.config import BankConfig
from clusterq_gen.config.emission import EmitConfig
from clusterq_gen.config.method import MethodConfig
from clusterq_gen.config.training import GeneratorConfig, TrainConfig

Preset = Literal["auto", "paper-cifar", "paper-imagenet", "quick"]


class GenConfig(Settings):
    """Everything that determines a generator run; saved as config.yaml."""

    preset: Preset = Field("auto", description="source of the defaults")
    teacher: TeacherConfig
    method: MethodConfig = MethodConfig()
    quant: QuantConfig = QuantConfig()
    generator: GeneratorConfig = GeneratorConfig()
    train: TrainConfig = TrainConfig()
    bank: BankConfig = BankConfig()
    emit: EmitConfig = EmitConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    output: OutputConfig = OutputConfig()


SECTIONS = sections_of(GenConfig)
