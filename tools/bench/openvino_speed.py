"""Latency of INT8 files in OpenVINO, made for it with and without quantizers around activations, beside float.

    python tools/bench/openvino_speed.py mobilenetv3_large_w1 efficientnet_b0

Random weights, 224x224, one thread, float32 hint. The files take turns; ratios are within a turn. Half a minute a network.
"""

import sys
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import openvino
import torch
from export import _random_student
from interleaved import interleaved
from torch import nn

from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.for_target import file_for, quant_for
from clusterq_common.export.onnx_file import onnx_model
from clusterq_common.export.trace import replaced_quantizers
from clusterq_common.quant.config import QuantConfig

PLAIN, AROUND, FLOAT = "INT8", "INT8, around activations", "float"
# Batch size -> turns.
TURNS = {1: 11, 16: 5}
OPTIONS = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}


def files_of(name: str) -> dict[str, bytes]:
    """Return the three files of a network."""
    files = {}
    for label, around in ((PLAIN, False), (AROUND, True)):
        quant = QuantConfig.validated(quant_for("openvino", {"bits": "w8a8", "around_activations": around}))
        student, spec, _ = _random_student(name, quant, 2)
        made = onnx_model(student, spec, OnnxConfig.validated(file_for("openvino", {})))
        files[label] = made.model.SerializeToString()
    floats = replaced_quantizers(student, lambda _name, _quantizer: nn.Identity())
    return {**files, FLOAT: onnx_model(floats, spec, OnnxConfig()).model.SerializeToString()}


def main() -> None:
    """Print a line for each network, batch size and file."""
    torch.set_num_threads(1)
    core = openvino.Core()
    for name in sys.argv[1:]:
        files = files_of(name)
        for batch, turns in TURNS.items():
            images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)
            actions = {}
            with TemporaryDirectory() as folder:
                for label, data in files.items():
                    path = f"{folder}/{len(actions)}.onnx"
                    with open(path, "wb") as file:
                        file.write(data)
                    model = core.read_model(path)
                    model.reshape(list(images.shape))
                    compiled = core.compile_model(model, "CPU", OPTIONS)
                    actions[label] = lambda compiled=compiled, images=images: compiled(images)
            seconds = interleaved(actions, turns)
            for label, values in seconds.items():
                ratios = sorted(one / other for one, other in zip(values, seconds[FLOAT], strict=True))
                print(
                    f"{name}, batch {batch}, {label}: {1e3 * median(values):.2f} ms, {median(ratios):.2f} of float's time "
                    f"({ratios[1]:.2f} to {ratios[-2]:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
