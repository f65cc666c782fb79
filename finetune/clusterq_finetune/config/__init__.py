"""Settings of a fine-tuning, a file for each part: recipes on top of defaults. Free of torch."""

from clusterq_finetune.config.evaluation import EvaluationConfig
from clusterq_finetune.config.named_recipes import RECIPES, RecipeName
from clusterq_finetune.config.recipe import RecipeConfig, recipe_notes
from clusterq_finetune.config.run import SECTIONS, FinetuneConfig, resolve

__all__ = [
    "RECIPES",
    "SECTIONS",
    "EvaluationConfig",
    "FinetuneConfig",
    "RecipeConfig",
    "RecipeName",
    "recipe_notes",
    "resolve",
]
