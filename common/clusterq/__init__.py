"""clusterq from Python: `import clusterq as cq`, then everything that a program of your own needs.

Teachers and low-bit students are torch modules, settings are arguments. Nothing here writes a file that was not asked for, prints, or needs a
folder of runs. Names are imported when they are first used, so importing the package itself takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusterq._learn import choose_bits as choose_bits
    from clusterq._learn import distill as distill
    from clusterq._learn import finetune as finetune
    from clusterq._learn import reconstruct as reconstruct
    from clusterq._load import load_student as load_student
    from clusterq._load import load_teacher as load_teacher
    from clusterq._load import open_images as open_images
    from clusterq._load import open_shards as open_shards
    from clusterq._result import evaluate as evaluate
    from clusterq._result import export_onnx as export_onnx
    from clusterq_common.errors import ClusterqError as ClusterqError
    from clusterq_common.images.normalise import normalise as normalise
    from clusterq_common.quant.calibrate import calibrate as calibrate
    from clusterq_common.quant.config import QuantConfig as QuantConfig
    from clusterq_common.quant.convert import convert as convert
    from clusterq_common.quant.integer import integer_arithmetic as integer_arithmetic
    from clusterq_common.shards.given import ShardWriter as ShardWriter
    from clusterq_common.shards.read import ShardSet as ShardSet
    from clusterq_common.taps import ClassGroups as ClassGroups
    from clusterq_common.taps import batchnorm_taps as batchnorm_taps
    from clusterq_common.teacher.load import Teacher as Teacher
    from clusterq_common.teacher.spec import InputSpec as InputSpec
    from clusterq_finetune.config import RecipeConfig as Recipe
    from clusterq_finetune.evaluation.evaluate import EvaluationResult as EvaluationResult

    __version__: str

__all__ = [
    "ClassGroups",
    "ClusterqError",
    "EvaluationResult",
    "InputSpec",
    "QuantConfig",
    "Recipe",
    "ShardSet",
    "ShardWriter",
    "Teacher",
    "batchnorm_taps",
    "calibrate",
    "choose_bits",
    "convert",
    "distill",
    "evaluate",
    "export_onnx",
    "finetune",
    "integer_arithmetic",
    "load_student",
    "load_teacher",
    "normalise",
    "open_images",
    "open_shards",
    "reconstruct",
]

# Name -> module, and the name in it where that is another one. A test compares this with the imports above.
_PLACES = {
    "ClassGroups": "clusterq_common.taps",
    "ClusterqError": "clusterq_common.errors",
    "EvaluationResult": "clusterq_finetune.evaluation.evaluate",
    "InputSpec": "clusterq_common.teacher.spec",
    "QuantConfig": "clusterq_common.quant.config",
    "Recipe": "clusterq_finetune.config:RecipeConfig",
    "ShardSet": "clusterq_common.shards.read",
    "ShardWriter": "clusterq_common.shards.given",
    "Teacher": "clusterq_common.teacher.load",
    "batchnorm_taps": "clusterq_common.taps",
    "calibrate": "clusterq_common.quant.calibrate",
    "choose_bits": "clusterq._learn",
    "convert": "clusterq_common.quant.convert",
    "distill": "clusterq._learn",
    "evaluate": "clusterq._result",
    "export_onnx": "clusterq._result",
    "finetune": "clusterq._learn",
    "integer_arithmetic": "clusterq_common.quant.integer",
    "load_student": "clusterq._load",
    "load_teacher": "clusterq._load",
    "normalise": "clusterq_common.images.normalise",
    "open_images": "clusterq._load",
    "open_shards": "clusterq._load",
    "reconstruct": "clusterq._learn",
}


if not TYPE_CHECKING:  # a type checker would take any name for one of the library's

    def __getattr__(name: str) -> Any:
        """Import what is asked for; the next time it is there."""
        if name == "__version__":
            from importlib.metadata import version

            return version("clusterq")
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, other = _PLACES[name].partition(":")
        value = getattr(import_module(module), other or name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
