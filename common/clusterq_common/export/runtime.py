"""An exported ONNX file run by ONNX Runtime, as a model that can be evaluated like any other."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.export.description import Description
from clusterq_common.run.extras import need
from clusterq_common.setting_names import setting_name

# Of five levels, the one for crashes alone.
SILENT = 4


class OnnxModel(nn.Module):
    """Model of an exported ONNX file. It runs on the CPU, whatever the device of its images.

    Attributes:
        description: the file's description.
    """

    def __init__(
        self, source: Path | bytes, *, optimise: bool = True, threads: int | None = None, name: str | None = None
    ) -> None:
        """Load an exported file.

        Args:
            source: a file, or a file's bytes.
            optimise: allow ONNX Runtime to rewrite the graph, which is required for integer kernels.
            threads: threads within a layer; ONNX Runtime's default if left out.
            name: name of the file in error messages; that of the setting `onnx` if left out.

        Raises:
            ClusterqError: there is no such file, ONNX Runtime cannot run it, or clusterq did not write it.
        """
        super().__init__()
        name = name or setting_name("onnx")
        ort = need("onnxruntime", name, "onnx")
        if isinstance(source, Path) and not source.is_file():
            raise ClusterqError(f"{name}: {source} does not exist, expected a file written by clusterq-finetune export.")
        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        # What it logs quotes names of the file as they are; its exceptions say the same.
        options.log_severity_level = SILENT
        if threads is not None:
            options.intra_op_num_threads = threads
        described = source if isinstance(source, Path) else "the exported model"
        try:
            model = str(source) if isinstance(source, Path) else source
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base but Exception
            raise ClusterqError(
                f"{name}: ONNX Runtime {ort.__version__} cannot load {described} ({str(error).strip().splitlines()[0]}), expected an ONNX "
                f"file whose types it knows; use a newer onnxruntime, or export with {setting_name('integers', 'int8')}."
            ) from error
        properties = self._session.get_modelmeta().custom_metadata_map
        if "clusterq" not in properties:
            raise ClusterqError(
                f"{name}: {described} does not say which images it takes, expected the metadata that clusterq-finetune export writes; "
                "export the student again."
            )
        try:
            values = {key: json.loads(value) for key, value in properties.items()}
        except (ValueError, RecursionError) as error:
            raise ClusterqError(
                f"{name}: {described} has metadata that are no JSON ({type(error).__name__}), expected what clusterq-finetune export "
                "writes; export the student again."
            ) from error
        self.description = Description.validated(values, source=str(described))
        taken, spec = self._session.get_inputs()[0], self.description.input
        # Its own images are made by what it says: they must be those that its graph takes.
        if len(self._session.get_inputs()) != 1 or taken.shape[1:] != list(spec.shape):
            raise ClusterqError(
                f"{name}: {described} takes images of {taken.shape[1:]} and says {list(spec.shape)}, expected the "
                "same; export the student again."
            )
        self._name, self._input = f"{name}: {described}", taken.name

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) float32 to logits (N, classes) float32, on the device of `x`."""
        images = np.ascontiguousarray(x.cpu().numpy())
        try:
            logits = self._session.run(None, {self._input: images})[0]
        except Exception as error:  # its exceptions have no common base but Exception
            raise ClusterqError(f"{self._name} cannot be run ({error}); export the student again.") from error
        expected = (len(images), self.description.input.num_classes)
        if not isinstance(logits, np.ndarray) or logits.shape != expected or logits.dtype != np.float32:
            raise ClusterqError(
                f"{self._name} gives {getattr(logits, 'shape', type(logits).__name__)}, expected float32 logits of shape {expected}; export "
                "the student again."
            )
        return torch.from_numpy(logits).to(x.device)
