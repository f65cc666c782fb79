"""An exported ONNX file run by ONNX Runtime, as a model that can be evaluated like any other."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.export.description import Description
from clusterq_common.run.extras import need


class OnnxModel(nn.Module):
    """Model of an exported ONNX file. It runs on the CPU, whatever the device of its images.

    Attributes:
        description: the file's description.
    """

    def __init__(
        self, source: Path | bytes, *, optimise: bool = True, threads: int | None = None, name: str = "--onnx"
    ) -> None:
        """Load an exported file.

        Args:
            source: a file, or a file's bytes.
            optimise: allow ONNX Runtime to rewrite the graph, which is required for integer kernels.
            threads: threads within a layer; ONNX Runtime's default if left out.
            name: name of the file in error messages.

        Raises:
            ClusterqError: there is no such file, ONNX Runtime cannot run it, or clusterq did not write it.
        """
        super().__init__()
        ort = need("onnxruntime", "--onnx", "onnx")
        if isinstance(source, Path) and not source.is_file():
            raise ClusterqError(f"{name}: {source} does not exist, expected a file written by clusterq-finetune export.")
        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        described = source if isinstance(source, Path) else "the exported model"
        try:
            model = str(source) if isinstance(source, Path) else source
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base but Exception
            raise ClusterqError(
                f"{name}: ONNX Runtime {ort.__version__} cannot load {described} ({str(error).strip().splitlines()[0]}), expected an ONNX "
                "file whose types it knows; use a newer onnxruntime, or export with --integers int8."
            ) from error
        properties = self._session.get_modelmeta().custom_metadata_map
        if "clusterq" not in properties:
            raise ClusterqError(
                f"{name}: {described} does not say which images it takes, expected the metadata that clusterq-finetune export writes; "
                "export the student again."
            )
        self.description = Description.validated(
            {key: json.loads(value) for key, value in properties.items()}, source=str(described)
        )
        self._input = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, S, S) float32 to logits (N, classes) float32, on the device of `x`."""
        images = np.ascontiguousarray(x.cpu().numpy())
        return torch.from_numpy(self._session.run(None, {self._input: images})[0]).to(x.device)
