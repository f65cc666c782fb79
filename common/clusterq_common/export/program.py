"""Export of a student to a torch.export program, which runs without clusterq in fake-quantized float32."""

import io

import torch
from torch import Tensor, fx, nn

from clusterq_common.device.setup import set_memory_format
from clusterq_common.export.description import Description
from clusterq_common.export.trace import replaced_quantizers, traced_program
from clusterq_common.quant.fake_quantize import fake_quantize
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.spec import InputSpec

# Name of the description among the file's extra files.
ABOUT = "clusterq.json"


def program_file(student: nn.Module, spec: InputSpec, description: Description) -> bytes:
    """Return the bytes of a .pt2 file, with the description as JSON beside the program.

    Raises:
        ClusterqError: the forward cannot be traced.
    """
    form = replaced_quantizers(student, _Plain)
    # torch.export.load warns of weights stored in channels_last order.
    set_memory_format(form, torch.contiguous_format)
    program = traced_program(form, spec, setting_name("format", "pt2"))
    for graph in (part.graph for part in program.graph_module.modules() if isinstance(part, fx.GraphModule)):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)  # it names source files of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={ABOUT: description.model_dump_json()})
    return buffer.getvalue()


class _Plain(nn.Module):
    """A quantizer's arithmetic without its autocast context, which would be a separate graph in the program."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, _name: str, quantizer: FakeQuantizer) -> None:
        super().__init__()
        self.register_buffer("scale", quantizer.step().detach())
        self.register_buffer("zero_point", quantizer.zero_point)
        self.axis, self.grid = quantizer.axis, quantizer.grid

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.scale, self.zero_point, self.axis, self.grid)


def load_program(data: bytes) -> nn.Module:
    """Load the program from the bytes of a .pt2 file, as a module."""
    module: nn.Module = torch.export.load(io.BytesIO(data)).module()
    return module
