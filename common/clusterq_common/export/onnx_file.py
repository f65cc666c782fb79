"""Export of a student to an ONNX file, with integer weights and a description."""

import json
from typing import NamedTuple

import onnx
from onnx import helper
from torch import nn

from clusterq_common.export.batchnorm import fold_batchnorm
from clusterq_common.export.bias import settle_biases
from clusterq_common.export.classifier import multiply_last
from clusterq_common.export.clips import drop_needless_clips, settle_limits
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.description import Description
from clusterq_common.export.hard_gates import saturate_hard_sigmoids
from clusterq_common.export.how_to_run import how_to_run
from clusterq_common.export.onnx_graph import Graph
from clusterq_common.export.onnx_types import choose_opset
from clusterq_common.export.pixel_input import name_batch, take_pixels
from clusterq_common.export.pooling import name_global_pooling, repeat_quantizers
from clusterq_common.export.qdq import integer_weights, quantizer_sites, spell_out
from clusterq_common.export.trace import DOMAIN, trace
from clusterq_common.quant.convert import quantizers
from clusterq_common.teacher.spec import InputSpec

GRAPH_NAME = "student"


class Made(NamedTuple):
    """An ONNX model, and what its making did to the student.

    Attributes:
        model: strictly checked.
        batchnorm_kept: BatchNorm layers that are still layers.
        weights_clipped: integers moved by one step, by the name of the weight (`fold-clip`).
    """

    model: onnx.ModelProto
    batchnorm_kept: list[str]
    weights_clipped: dict[str, int]


def onnx_model(student: nn.Module, spec: InputSpec, config: OnnxConfig) -> Made:
    """Return the student as an ONNX model; a network without quantizers stays in float32.

    Input `image` (N, C, H, W) float32, normalised, or pixels (`take_pixels`); output `logits` (N, classes) float32.

    Raises:
        ClusterqError: see `choose_opset` and `trace`.
    """
    weights = integer_weights(student)
    opset = choose_opset((weight.bits for weight in weights.values()), config.integers, config.opset)
    traced = trace(student, spec, opset)
    graph = Graph(traced.graph)
    sites = quantizer_sites(graph)
    clipped = fold_batchnorm(graph, weights, sites, config) if config.batchnorm != "keep" else {}
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*traced.graph.value_info, *traced.graph.output]
    }
    activations = {name: quantizer for name, quantizer in quantizers(student).items() if name not in weights}
    steps = {name: float(quantizer.step().detach()) for name, quantizer in activations.items()}
    settle_biases(graph, weights, sites, steps, config.integers)
    drop_needless_clips(graph, activations, sites)
    settle_limits(graph)
    name_global_pooling(graph, {name: len(shape) for name, shape in shapes.items()})
    spell_out(graph, weights, activations, config, opset)
    saturate_hard_sigmoids(graph)
    multiply_last(graph, shapes)
    repeat_quantizers(graph)
    if config.with_preprocessing:
        take_pixels(graph, spec)
    name_batch(graph, config.fixed_batch)
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
    return Made(model, kept, clipped)


def onnx_bytes(student: nn.Module, spec: InputSpec, description: Description, config: OnnxConfig) -> tuple[bytes, Description]:
    """Return a student as the bytes of an ONNX file with a description, and the completed description.

    Raises:
        ClusterqError: see `onnx_model`.
    """
    model, kept, clipped = onnx_model(student, spec, config)
    known = {
        "integers": config.integers,
        "opset": opset_of(model),
        "batchnorm_kept": tuple(kept),
        "weights_clipped": clipped,
        "with_preprocessing": config.with_preprocessing,
        "fixed_batch": config.fixed_batch,
    }
    description = description.model_copy(update=known)
    add_description(model, description)
    return model.SerializeToString(), description


def add_description(model: onnx.ModelProto, description: Description) -> None:
    """Write the description into the model's metadata, one JSON value a field, and how to run the file into its doc string."""
    model.doc_string = how_to_run(description)
    helper.set_model_props(model, {name: json.dumps(value) for name, value in description.model_dump(mode="json").items()})


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators."""
    return next(int(item.version) for item in model.opset_import if item.domain in {"", "ai.onnx"})
