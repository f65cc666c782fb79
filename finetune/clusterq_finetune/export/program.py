"""A student as torch.export's program: runs without clusterq, in fake-quantized float32."""

import io

import torch
from torch import nn

from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.export.description import Description
from clusterq_finetune.export.trace import traced_program

# Name of the description among the file's extra files.
ABOUT = "clusterq.json"


def program_file(student: nn.Module, spec: InputSpec, description: Description) -> bytes:
    """The bytes of a .pt2 file, with the description as JSON beside the program.

    Raises:
        ClusterqError: the forward cannot be traced.
    """
    program = traced_program(student, spec, "--format pt2")
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # source files of the machine it was made on
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={ABOUT: description.model_dump_json()})
    return buffer.getvalue()


def load_program(data: bytes) -> nn.Module:
    """The program in the bytes of a .pt2 file, as a module."""
    module: nn.Module = torch.export.load(io.BytesIO(data)).module()
    return module
