"""A step as a CUDA graph: its kernels are recorded once and then launched all together, so that small networks do not wait for Python."""

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_common.errors import ClusterqError

Body = Callable[[], dict[str, Tensor]]
# Before the first recording optimizers make their state, libraries their handles, and cuDNN its choices.
PLAIN_STEPS = 3


class Recorder(Protocol):
    """What runs a step plainly, and what records one."""

    def plain(self, body: Body) -> dict[str, Tensor]:
        """Run it."""

    def record(self, body: Body) -> Body:
        """Record it, without running it, as something that runs it whenever it is called."""


class CudaRecorder:
    """CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def plain(self, body: Body) -> dict[str, Tensor]:
        """On a stream that is not the default one, as what is recorded later must have been run."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            values = body()
        current.wait_stream(self.stream)
        return values

    def record(self, body: Body) -> Body:
        """One graph; its results are copied out of its memory, which the next step writes again."""
        graph = torch.cuda.CUDAGraph()
        # The plain steps' stream: autograd remembers on which stream a parameter's gradient was added up before.
        with torch.cuda.graph(graph, stream=self.stream):
            values = body()
            joined = torch.stack([value.float() for value in values.values()])

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return dict(zip(values, joined.clone().unbind(), strict=True))

        return replay


class GraphedStep:
    """A step that is recorded once for each phase, and replayed from then on.

    Args:
        body: one step, from tensors whose memory stays to scalars by name. It must wait for nothing and look at no value.
        recorder: CUDA's, in a run.
    """

    def __init__(self, body: Body, recorder: Recorder) -> None:
        self.body, self.recorder = body, recorder
        self._phase: Hashable = object()  # no phase of a caller
        self._plain_steps_left = 0
        self._replay: Body | None = None

    def __call__(self, phase: Hashable = None) -> dict[str, Tensor]:
        """One step.

        Args:
            phase: another one takes part in other networks or losses: some steps run plainly before it is recorded.
        """
        if phase != self._phase:
            self._phase, self._plain_steps_left, self._replay = phase, PLAIN_STEPS, None
        if self._plain_steps_left:
            self._plain_steps_left -= 1
            return self.recorder.plain(self.body)
        if self._replay is None:
            self._replay = self.recorder.record(self.body)
        return self._replay()


def cuda_recorder(device: torch.device) -> CudaRecorder:
    """What `--cuda-graphs` asks for.

    Raises:
        ClusterqError: see `need_cuda_graphs`.
    """
    need_cuda_graphs(device)
    return CudaRecorder(device)


def can_use_cuda_graphs(device: torch.device) -> bool:
    """Whether there is a CUDA device, and one process has it to itself."""
    return device.type == "cuda" and Ranks.current().world == 1


def need_cuda_graphs(device: torch.device) -> None:
    """Refuse what `--cuda-graphs` cannot do.

    Raises:
        ClusterqError: there is no CUDA device, or several processes share the steps.
    """
    if not can_use_cuda_graphs(device):
        world = Ranks.current().world
        where = f"{world} processes" if world > 1 else f"the device {device.type}"
        raise ClusterqError(f"--cuda-graphs: found {where}, expected one process on a CUDA device; leave it out.")
