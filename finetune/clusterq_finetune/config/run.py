"""Settings of a whole fine-tuning."""

from typing import Any

from clusterq_common.device.config import OutputConfig, RuntimeConfig
from clusterq_common.quant.choice_config import BitChoice
from clusterq_common.quant.config import QuantConfig
from clusterq_common.settings import Settings, merged, sections_of
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune.config.evaluation import EvaluationConfig
from clusterq_finetune.config.named_recipes import PAPER_IMAGENET, RECIPES
from clusterq_finetune.config.recipe import RecipeConfig


class FinetuneConfig(Settings):
    """Everything that determines a fine-tuned student, apart from the shards' content; saved as config.yaml."""

    shards: str
    # Which set that was: a resumed run learns from the same images, wherever they lie by then. None in configs of older versions.
    shards_digest: str | None = None
    teacher: TeacherConfig
    quant: QuantConfig = QuantConfig()
    choice: BitChoice = BitChoice()
    recipe: RecipeConfig = RecipeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    output: OutputConfig = OutputConfig()


SECTIONS = sections_of(FinetuneConfig)


def resolve(
    flags: dict[str, Any], shards: str, teacher: TeacherConfig, *, digest: str | None = None, imagenet_sized: bool = False
) -> FinetuneConfig:
    """Merge defaults, recipe and given flags into a configuration.

    A flag wins over the recipe, and the recipe over the defaults. `flags` are section -> field -> value.

    `digest` is that of the set in the folder `shards`.

    Raises:
        ClusterqError: a value that does not fit.
    """
    given = {section: values for section, values in flags.items() if section != "teacher"}
    recipe = given.get("recipe", {}).get("recipe", "fast")
    values = dict(RECIPES.get(recipe, {}))
    if recipe == "paper" and imagenet_sized:
        values |= PAPER_IMAGENET
    base = {"shards": shards, "shards_digest": digest, "teacher": teacher.model_dump(), "recipe": values}
    return FinetuneConfig.validated(merged(base, given))
