"""An exported ONNX file run by ONNX Runtime, as a model that can be evaluated like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.export.description import Description
from clusterq_common.export.weights import Array
from clusterq_common.images.normalise import to_pixels
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
        self,
        source: Path | bytes,
        *,
        optimise: bool = True,
        threads: int | None = None,
        name: str | None = None,
        like: Description | None = None,
        profile: Path | None = None,
    ) -> None:
        """Load an exported file.

        Args:
            source: a file, or a file's bytes.
            optimise: allow ONNX Runtime to rewrite the graph, which is required for integer kernels.
            threads: threads within a layer; ONNX Runtime's default if left out.
            name: name of the file in error messages; that of the setting `onnx` if left out.
            like: description of a file for the same images; then this one may have none, and is taken for float.
            profile: beginning of the name of ONNX Runtime's profile, see `end_profile`.

        Raises:
            ClusterqError: there is no such file, ONNX Runtime cannot run it, or clusterq did not write it.
        """
        super().__init__()
        name = name or setting_name("onnx")
        if isinstance(source, Path) and not source.is_file():
            raise ClusterqError(f"{name}: {source} does not exist, expected a file written by clusterq-finetune export.")
        self._source, self._like, self._named = source, like, name
        self._name = f"{name}: {source if isinstance(source, Path) else 'the exported model'}"
        self._session = _session(source, self._name, name, optimise=optimise, threads=threads, profile=profile)
        self.description = _description(self._session, self._name, like)
        _refuse_other_images(self._session, self.description, self._name)
        self._input = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) float32 to logits (N, classes) float32, on the device of `x`.

        A file that takes pixels gets the nearest ones: exactly those that the images were made from.
        """
        fixed = self.description.fixed_batch
        parts = [self._logits(part) for part in ([x] if fixed is None else x.split(fixed))]
        return torch.cat(parts).to(x.device)

    def feed(self, x: Tensor) -> Array:
        """Return normalised images (N, C, H, W) float32 as the graph takes them: as they are, or as pixels.

        A graph that takes so many images at once gets the last one again until there are enough.
        """
        fixed = self.description.fixed_batch
        if fixed is not None and len(x) < fixed:
            x = torch.cat([x, x[-1:].expand(fixed - len(x), *x.shape[1:])])
        if self.description.with_preprocessing:
            x = to_pixels(x, self.description.input).permute(0, 2, 3, 1)
        return np.ascontiguousarray(x.cpu().numpy())

    def again(self, *, threads: int | None = None, profile: Path | None = None) -> "OnnxModel":
        """Load the same file again with other threads, or to profile it."""
        return OnnxModel(self._source, threads=threads, name=self._named, like=self._like, profile=profile)

    def run(self, images: Array) -> Any:
        """Run the graph on what `feed` gives, and return its first output as it is.

        Raises:
            ClusterqError: ONNX Runtime refuses.
        """
        try:
            return self._session.run(None, {self._input: images})[0]
        except Exception as error:  # its exceptions have no common base but Exception
            raise ClusterqError(f"{self._name} cannot be run ({error}); export the student again.") from error

    def end_profile(self) -> str:
        """Return the file of ONNX Runtime's profile; the model was made with `profile`."""
        return str(self._session.end_profiling())

    def _logits(self, x: Tensor) -> Tensor:
        images = self.feed(x)
        logits = self.run(images)
        expected = (len(images), self.description.input.num_classes)
        if not isinstance(logits, np.ndarray) or logits.shape != expected or logits.dtype != np.float32:
            raise ClusterqError(
                f"{self._name} gives {getattr(logits, 'shape', type(logits).__name__)}, expected float32 logits of shape {expected}; export "
                "the student again."
            )
        return torch.from_numpy(logits[: len(x)])


def _session(
    source: Path | bytes, described: str, name: str, *, optimise: bool, threads: int | None, profile: Path | None
) -> Any:
    """Return ONNX Runtime's session of a file."""
    ort = need("onnxruntime", name, "onnx")
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    # What it logs quotes names of the file as they are; its exceptions say the same.
    options.log_severity_level = SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        model = str(source) if isinstance(source, Path) else source
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but Exception
        raise ClusterqError(
            f"{described}: ONNX Runtime {ort.__version__} cannot load it ({str(error).strip().splitlines()[0]}), expected an ONNX file "
            f"whose types it knows; use a newer onnxruntime, or export with {setting_name('integers', 'int8')}."
        ) from error


def _description(session: Any, described: str, like: Description | None) -> Description:
    """Return what the file's metadata say; of a file without them what `like` says of its images, as float."""
    properties = session.get_modelmeta().custom_metadata_map
    if "clusterq" in properties:
        try:
            values = {key: json.loads(value) for key, value in properties.items()}
        except (ValueError, RecursionError) as error:
            raise ClusterqError(
                f"{described} has metadata that are no JSON ({type(error).__name__}), expected what clusterq-finetune export writes; "
                "export the student again."
            ) from error
        return Description.validated(values, source=described.partition(": ")[2])
    if like is None:
        raise ClusterqError(
            f"{described} does not say which images it takes, expected the metadata that clusterq-finetune export writes; "
            "export the student again."
        )
    shape = session.get_inputs()[0].shape
    batch = shape[0] if shape and isinstance(shape[0], int) else None
    plain = {"bits": "w32a32", "integers": "", "opset": None, "with_preprocessing": False, "fixed_batch": batch}
    return like.model_copy(update=plain)


def _refuse_other_images(session: Any, description: Description, described: str) -> None:
    """The graph must take the images that its description names, because these are made for it."""
    spec, fixed = description.input, description.fixed_batch
    says, kind = list(spec.shape), "tensor(float)"
    if description.with_preprocessing:
        says, kind = [*spec.shape[1:], spec.channels], "tensor(uint8)"
    taken = session.get_inputs()[0]
    one_input = len(session.get_inputs()) == 1 and taken.type == kind and len(taken.shape) == 4
    if not one_input or taken.shape[1:] != says or isinstance(taken.shape[0], int) != (fixed is not None):
        raise ClusterqError(
            f"{described} takes images of {taken.shape} as {taken.type} and says {[fixed or 'batch', *says]} as {kind}, expected the same; "
            "export the student again."
        )
