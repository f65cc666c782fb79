"""Search for the cause of differences between an exported model and its student: the first activation that rounds differently."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from clusterq_common.capture import capture
from clusterq_common.export.pooling import KEEPING
from clusterq_common.quant.convert import activation_sites
from clusterq_common.quant.fake_quantizer import FakeQuantizer


@dataclass(frozen=True)
class Flip:
    """First activation at which one image's integers differ.

    Attributes:
        site: name of the quantizer.
        values: number of integers that differ there.
        steps: largest difference of two integers.
        distance: largest distance of the student's values there from the boundary between two integers, in steps.
    """

    site: str
    values: int
    steps: int
    distance: float


def first_flips(student: nn.Module, model: onnx.ModelProto, images: Tensor) -> tuple[list[Flip | None], Tensor, Tensor]:
    """Return, for each image, the first activation whose integers differ, or None; and both logits, (N, classes) each.

    Args:
        student: in eval mode; each activation quantizer runs once, in the order of the model's QuantizeLinear nodes.
        model: exported from it; it runs without optimisations.
        images: (N, C, H, W) float32, normalised.
    """
    sites, expected = _observe(student, images)
    producers = {name: node for node in model.graph.node for name in node.output}

    def repeats(node: onnx.NodeProto) -> bool:
        """Return whether a quantizer rounds what the same one has rounded before (`repeat_quantizers`)."""
        before = producers.get(node.input[0])
        source = producers.get(before.input[0]) if before is not None and before.op_type in KEEPING else None
        return source is not None and source.op_type == "DequantizeLinear" and source.input[1:] == node.input[1:]

    starts = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear" and not repeats(node)]
    assert len(starts) == len(sites), f"{len(starts)} QuantizeLinear nodes for {len(sites)} quantizers"
    logits, dequantized = _run(model, starts, images)
    flips: list[Flip | None] = [None] * len(images)
    for (name, quantizer, values), real in zip(sites, dequantized, strict=True):
        ours = quantizer.to_int(values).integers
        scale, zero_point = quantizer.step().detach(), quantizer.zero_point
        theirs = (torch.from_numpy(real) / scale).round().int() + zero_point
        # In steps from the middle between two integers, where rounding may go either way.
        distance = ((values.double() / scale.double()).remainder(1) - 0.5).abs()
        apart = (ours - theirs).abs()
        for image in range(len(images)):
            differs = apart[image] > 0
            if flips[image] is None and bool(differs.any()):
                flips[image] = Flip(name, int(differs.sum()), int(apart[image].max()), float(distance[image][differs].max()))
    return flips, expected, torch.from_numpy(logits)


@torch.no_grad()
def _observe(student: nn.Module, images: Tensor) -> tuple[list[tuple[str, FakeQuantizer, Tensor]], Tensor]:
    """Return each activation quantizer with its input, in the order of execution, and the logits."""
    seen: list[tuple[str, FakeQuantizer, Tensor]] = []
    sites = activation_sites(student)
    with capture(sites, before=lambda call: seen.append((call.name, sites[call.name], call.args[0].clone()))):
        return seen, student(images)


def _run(model: onnx.ModelProto, starts: list[str], images: Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the logits, and the output of the DequantizeLinear after each QuantizeLinear."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    follows = {node.input[0]: node for node in model.graph.node if node.op_type in {"Clip", "DequantizeLinear"}}
    ends = []
    for start in starts:
        node = follows[start]
        node = follows[node.output[0]] if node.op_type == "Clip" else node
        ends.append(node.output[0])
        probed.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits, *values = session.run([model.graph.output[0].name, *ends], {"image": images.numpy()})
    return logits, values
