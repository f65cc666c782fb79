"""An exported ONNX file run by OpenVINO on the CPU, as a model that can be evaluated and timed like `OnnxModel`."""

from functools import cache
from pathlib import Path
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.export.description import Description
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.export.weights import Array
from clusterq_common.run.extras import need
from clusterq_common.setting_names import setting_name

# float32, since OpenVINO otherwise computes a float file in bf16 where the processor can.
PRECISION = "f32"


@cache
def openvino_core() -> Any:
    """Return the `openvino.Core` of this process, which lives until its end.

    The CPU plugin sets a signal stack for the thread that compiles first, and unmaps it when the core goes. If another thread's garbage
    collection destroys the core, the first thread is left with a signal stack that is gone, and its next signal ends the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoModel(OnnxModel):
    """Model of an exported ONNX file in OpenVINO. ONNX Runtime reads and checks the file, and does not run it."""

    def __init__(
        self,
        source: Path | bytes,
        *,
        threads: int,
        name: str,
        like: Description | None = None,
        profiled: bool = False,
    ) -> None:
        """Load an exported file.

        Args:
            source: a file, or a file's bytes.
            threads: threads within a layer.
            name: name of the file in error messages.
            like: description of a file for the same images, see `OnnxModel`.
            profiled: measure the time of each layer, see `profile`.

        Raises:
            ClusterqError: OpenVINO is not installed or cannot read the file; see `OnnxModel`.
        """
        openvino = need("openvino", name, "openvino")
        super().__init__(source, optimise=False, threads=1, name=name, like=like)
        self._options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": PRECISION,
            "NUM_STREAMS": 1,
            "PERF_COUNT": profiled,
        }
        try:
            self._graph = openvino_core().read_model(model=str(source) if isinstance(source, Path) else source)
        except Exception as error:  # its exceptions have no common base but Exception
            raise ClusterqError(
                f"{self._name}: OpenVINO {openvino.__version__} cannot read it ({str(error).strip().splitlines()[0]}), expected an ONNX file "
                f"whose types it knows; export with {setting_name('target', 'openvino')}."
            ) from error
        self._requests: dict[tuple[int, ...], Any] = {}

    def run(self, images: Array) -> Any:
        """Run the graph on what `feed` gives, and return its first output as it is. The first call of each shape compiles the graph for it.

        Raises:
            ClusterqError: OpenVINO refuses.
        """
        try:
            request = self._request(images.shape)
            request.infer({0: images}, share_inputs=True)
        except Exception as error:  # its exceptions have no common base but Exception
            raise ClusterqError(f"{self._name} cannot be run in OpenVINO ({error}); export the student again.") from error
        return request.get_output_tensor(0).data.copy()

    def profile(self, images: Array) -> list[Any]:
        """Return the layers of the last run on images of this shape, with their times; the model was made `profiled`."""
        return list(self._request(images.shape).get_profiling_info())

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._requests:
            self._graph.reshape(list(shape))
            self._requests[shape] = openvino_core().compile_model(self._graph, "CPU", self._options).create_infer_request()
        return self._requests[shape]

    def profiled(self, threads: int) -> "OpenVinoModel":
        """Load the same file again to measure the time of each layer."""
        return OpenVinoModel(self._source, threads=threads, name=self._named, like=self._like, profiled=True)
