"""Tracing of a student to an ONNX graph in which every quantizer is one named node, for `qdq.py` to replace."""

import copy
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.quant.convert import quantizers
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import InputSpec

if TYPE_CHECKING:
    from onnx import ModelProto

DOMAIN, SITE_OP, SITE = "clusterq", "FakeQuantize", "site"
INPUT, OUTPUT = "image", "logits"
# Number of images in the traced batch; not 1, which torch.export would treat as a constant.
TRACED_BATCH = 2


def trace(student: nn.Module, spec: InputSpec, opset: int) -> "ModelProto":
    """Return an ONNX model of `student` with a dynamic first axis.

    Its quantizers are nodes `clusterq.FakeQuantize` with attribute `site`, the quantizer's name in the student. Parameters and
    buffers are initializers under their own names. The exporter optimises nothing; this package does all rewriting.

    Raises:
        ClusterqError: the forward cannot be traced, or a layer has no counterpart in ONNX; the layer is named.
    """
    traced = _export_form(student)
    program = traced_program(traced, spec, setting_name("format", "onnx"))
    with _quiet():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ClusterqError(_unsupported(error, program)) from error
    assert exported is not None
    model: ModelProto = exported.model_proto
    return model


def traced_program(student: nn.Module, spec: InputSpec, asked_by: str) -> torch.export.ExportedProgram:
    """Return torch.export's program of `student` in eval mode, for any number of images.

    Raises:
        ClusterqError: the forward cannot be traced.
    """
    device = next(student.parameters()).device
    images = torch.zeros(TRACED_BATCH, *spec.shape, device=device)
    with _quiet(), torch.no_grad():
        try:
            return torch.export.export(student.eval(), (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except Exception as error:  # torch.export documents no narrower type; the model's own forward runs in it
            reason = str(error).strip().split("\n")[0]
            raise ClusterqError(
                f"{asked_by}: the student's forward cannot be traced ({type(error).__name__}: {reason}), expected one without branches on "
                "values and on the number of images; change the architecture's forward."
            ) from error


def replaced_quantizers(student: nn.Module, replacement: Callable[[str, FakeQuantizer], nn.Module]) -> nn.Module:
    """Return a copy in eval mode with `replacement(name, quantizer)` in place of each quantizer."""
    form = copy.deepcopy(student).eval()
    for name, quantizer in quantizers(form).items():
        parent, _, child = name.rpartition(".")
        form.get_submodule(parent).register_module(child, replacement(name, quantizer))
    return form


class _Site(nn.Module):
    """Placeholder for the quantizer called `name` while the student is traced."""

    def __init__(self, name: str, _quantizer: FakeQuantizer) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        attributes: dict[str, Any] = {SITE: self.name}
        node: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{SITE_OP}", (x,), attrs=attributes, dtype=x.dtype, shape=x.shape, version=1
        )
        return node


def _export_form(student: nn.Module) -> nn.Module:
    form = replaced_quantizers(student, _Site)
    for module in form.modules():
        # Without a bias the exporter would compute zeros from the weight's shape; `bias.py` drops zeros.
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))
    return form


def _unsupported(error: Exception, program: torch.export.ExportedProgram) -> str:
    """Return an error message that names the unsupported layer, from the node in the exporter's chain of errors."""
    reasons: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.append(str(cause))
        cause = cause.__cause__
    named = next((match[1] for text in reasons if (match := re.search(r"node %(\w+)", text))), None)
    # The exporter first decomposes operators, and names the parts after them: bessel_j0 of special_bessel_j0.
    nodes = [node for node in program.graph.nodes if named is not None and "nn_module_stack" in node.meta]
    for node in sorted(nodes, key=lambda node: node.name != named):
        if node.name.endswith(str(named)):
            path, kind = list(node.meta["nn_module_stack"].values())[-1]
            layer = f"layer {path or 'itself'} ({str(kind).rsplit('.', 1)[-1]})"
            return (
                f"{setting_name('format', 'onnx')}: {layer} uses {node.target}, which torch's ONNX exporter does not know, expected operators that ONNX "
                f"has; replace that layer, or use {setting_name('format', 'pt2')}."
            )
    return (
        f"{setting_name('format', 'onnx')}: torch's ONNX exporter cannot express this student ({reasons[-1].strip().split(chr(10))[0]}), expected operators "
        f"that ONNX has; use {setting_name('format', 'pt2')}."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporters for the block.

    They remark on packages that nothing here needs and on their own deprecations, and print whole graphs before an error that we tell in
    one sentence.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", category=FutureWarning)
            warnings.simplefilter("ignore", category=DeprecationWarning)
            warnings.simplefilter("ignore", category=UserWarning)
            yield
    finally:
        logging.disable(disabled)
