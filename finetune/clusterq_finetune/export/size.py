"""How many bytes a student needs, by its numbers alone."""

from torch import nn

from clusterq_finetune.export.qdq import integer_weights


def size_of(student: nn.Module) -> dict[str, int]:
    """Bytes of the quantized weights: `integers` at their true bits, their `scales` (float32, zero-points as integers where not 0),
    and the same weights as `float32`."""
    weights = integer_weights(student).values()
    points = sum(weight.zero_point.size * weight.bits for weight in weights if weight.zero_point.any())
    return {
        "integers": sum(weight.integers.size * weight.bits for weight in weights) // 8,
        "scales": sum(4 * weight.scale.size for weight in weights) + points // 8,
        "float32": sum(4 * weight.integers.size for weight in weights),
    }
