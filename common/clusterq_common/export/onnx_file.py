"""Export of a student to an ONNX file, with integer weights and a description."""

import json

import onnx
from onnx import helper
from torch import nn

from clusterq_common.export.batchnorm import fold_batchnorm
from clusterq_common.export.bias import settle_biases
from clusterq_common.export.clips import drop_needless_clips
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.description import Description
from clusterq_common.export.onnx_graph import Graph
from clusterq_common.export.onnx_types import choose_opset
from clusterq_common.export.qdq import integer_weights, quantizer_sites, spell_out
from clusterq_common.export.trace import DOMAIN, trace
from clusterq_common.quant.convert import quantizers
from clusterq_common.teacher.spec import InputSpec

GRAPH_NAME = "student"


def onnx_model(student: nn.Module, spec: InputSpec, config: OnnxConfig) -> tuple[onnx.ModelProto, list[str]]:
    """Return the student as a strictly checked ONNX model, and the BatchNorm layers that it keeps.

    Input `image` (N, C, H, W) float32, normalised; output `logits` (N, classes) float32.

    Raises:
        ClusterqError: see `choose_opset` and `trace`.
    """
    weights = integer_weights(student)
    opset = choose_opset((weight.bits for weight in weights.values()), config.integers, config.opset)
    traced = trace(student, spec, opset)
    graph = Graph(traced.graph)
    sites = quantizer_sites(graph)
    if config.batchnorm != "keep":
        fold_batchnorm(graph, weights, sites, zero_points=config.batchnorm == "fold-all")
    activations = {name: quantizer for name, quantizer in quantizers(student).items() if name not in weights}
    steps = {name: float(quantizer.step().detach()) for name, quantizer in activations.items()}
    settle_biases(graph, weights, sites, steps, config.integers)
    drop_needless_clips(graph, activations, sites)
    spell_out(graph, weights, activations, config.integers, opset)
    graph.prune()
    kept = graph.batchnorm_layers()
    graph.shorten()
    imports = [item for item in traced.opset_import if item.domain != DOMAIN]
    model = helper.make_model(
        graph.proto(GRAPH_NAME),
        functions=list(traced.functions),
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
        producer_name="clusterq",
    )
    onnx.checker.check_model(model, full_check=True)
    return model, kept


def onnx_bytes(student: nn.Module, spec: InputSpec, description: Description, config: OnnxConfig) -> tuple[bytes, Description]:
    """Return a student as the bytes of an ONNX file with a description, and the completed description.

    Raises:
        ClusterqError: see `onnx_model`.
    """
    model, kept = onnx_model(student, spec, config)
    known = {"integers": config.integers, "opset": opset_of(model), "batchnorm_kept": tuple(kept)}
    description = description.model_copy(update=known)
    add_description(model, description)
    return model.SerializeToString(), description


def add_description(model: onnx.ModelProto, description: Description) -> None:
    """Write the description into the model's metadata, one JSON value a field."""
    helper.set_model_props(model, {name: json.dumps(value) for name, value in description.model_dump(mode="json").items()})


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators."""
    return next(int(item.version) for item in model.opset_import if item.domain in {"", "ai.onnx"})
