"""Export of a student to packed integers in a safetensors file, readable without torch (docs/deploy.md has a reader)."""

import json

import numpy as np
from safetensors.numpy import save
from torch import nn

from clusterq_common.export.description import Description
from clusterq_common.export.qdq import integer_weights
from clusterq_common.export.weights import Array, pack
from clusterq_common.quant.convert import quantizers

FORMAT = "clusterq-integers-1"


def packed_file(student: nn.Module, description: Description) -> bytes:
    """Return the file's bytes: integers, scale and zero-point of each quantized weight, other parameters and buffers as they are.

    A weight `conv.weight` of B bits is `conv.weight` (uint8, the values `integer - low`, B bits each, first value and lowest bit
    first), `conv.weight.scale` (float32, one or one per output channel) and `conv.weight.zero_point` (int32, likewise). An
    activation's quantizer `conv.input_quantizer` has `.scale` and `.zero_point`, one each. The metadata's `clusterq` is JSON: the
    description, `format`, and for each weight and each activation `bits`, `low` and `high`, with the weight's `shape`.
    """
    weights, tensors = integer_weights(student), _float_tensors(student)
    limits: dict[str, dict[str, object]] = {"weights": {}, "activations": {}}
    for site, weight in weights.items():
        name = site.removesuffix("_quantizer")
        tensors[name] = np.frombuffer(pack(weight.integers - weight.low, weight.bits), np.uint8)
        tensors[f"{name}.scale"], tensors[f"{name}.zero_point"] = weight.scale, weight.zero_point
        limits["weights"][name] = {
            "bits": weight.bits,
            "low": weight.low,
            "high": weight.high,
            "shape": list(weight.integers.shape),
        }
    for site, quantizer in quantizers(student).items():
        if site not in weights:
            tensors[f"{site}.scale"] = quantizer.step().detach().cpu().numpy()
            tensors[f"{site}.zero_point"] = quantizer.zero_point.cpu().numpy()
            limits["activations"][site] = {"bits": quantizer.bits, "low": quantizer.grid.low, "high": quantizer.grid.high}
    about = {"format": FORMAT, **description.model_dump(mode="json"), **limits}
    return save(tensors, metadata={"clusterq": json.dumps(about)})


def _float_tensors(student: nn.Module) -> dict[str, Array]:
    """Return the parameters and buffers that no quantizer holds or replaces."""
    own = tuple(f"{name}." for name in quantizers(student))
    replaced = {name.removesuffix("_quantizer") for name in quantizers(student)}
    return {
        name: tensor.detach().cpu().contiguous().numpy()
        for name, tensor in student.state_dict().items()
        if not name.startswith(own) and name not in replaced and not name.endswith("num_batches_tracked")
    }
