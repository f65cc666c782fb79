"""A step as a CUDA graph: its kernels are recorded once and then launched together, so that small networks do not wait."""

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_common.errors import ClusterqError

Body = Callable[[], dict[str, Tensor]]
# Number of eager steps before a recording, in which optimizers create their state, libraries their handles, and cuDNN its choices.
PLAIN_STEPS = 3
# Steps after which a recorded one is replayed at its full speed: the eager ones, the recording and a first replay.
STEPS_TO_FULL_SPEED = PLAIN_STEPS + 1


class Recorder(Protocol):
    """Interface that runs a step eagerly or records it."""

    def plain(self, body: Body) -> dict[str, Tensor]:
        """Run the step eagerly."""

    def record(self, body: Body) -> Body:
        """Record the step without running it. Returns a function that replays it."""


class CudaRecorder:
    """Recorder that uses CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def plain(self, body: Body) -> dict[str, Tensor]:
        """Run the step on a stream other than the default one, as is required before recording."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            values = body()
        current.wait_stream(self.stream)
        return values

    def record(self, body: Body) -> Body:
        """Record one graph. Its results are copied out of its memory, which the next step overwrites."""
        graph = torch.cuda.CUDAGraph()
        # Recorded on the eager steps' stream, because autograd remembers on which stream a parameter's gradient was accumulated.
        with torch.cuda.graph(graph, stream=self.stream):
            values = body()
            joined = torch.stack([value.float() for value in values.values()])

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return dict(zip(values, joined.clone().unbind(), strict=True))

        return replay


class Parts(Protocol):
    """Interface of a batch whose tensors can be replaced; a part that is not there is None."""

    def __iter__(self) -> Iterator[Tensor | None]: ...

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return a batch with `change` applied to each tensor."""


Batch = TypeVar("Batch", bound=Parts)


class StaticInputs(Generic[Batch]):
    """The memory from which a recorded step reads its batch. Each batch is copied into that of the first."""

    def __init__(self) -> None:
        self._held: Batch | None = None

    @property
    def held(self) -> Batch:
        """The latest batch, in memory that stays; `hold` comes first."""
        assert self._held is not None, "no batch was held"
        return self._held

    def hold(self, batch: Batch) -> None:
        """Copy a batch into the memory that the graph reads.

        Args:
            batch: tensors of the first batch's shapes and dtypes.
        """
        if self._held is None:
            self._held = batch.each(torch.empty_like)
        for held, part in zip(self._held, batch, strict=True):
            if held is not None and part is not None:
                held.copy_(part)


class GraphedStep:
    """A step that is recorded once for each phase, and replayed from then on.

    Args:
        body: one step, from tensors with fixed memory to scalars by name. It must not synchronise with the device or read a value.
        recorder: a `CudaRecorder`, in a run.
    """

    def __init__(self, body: Body, recorder: Recorder) -> None:
        self.body, self.recorder = body, recorder
        self._phase: Hashable = object()  # no phase of a caller
        self._plain_steps_left = 0
        self._replay: Body | None = None

    def __call__(self, phase: Hashable = None) -> dict[str, Tensor]:
        """Run one step.

        Args:
            phase: phase of the step. A new one involves other networks or losses: some steps run eagerly before it is recorded.
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
    """Return a recorder for `cuda_graphs`.

    Raises:
        ClusterqError: see `need_cuda_graphs`.
    """
    need_cuda_graphs(device)
    return CudaRecorder(device)


def can_use_cuda_graphs(device: torch.device) -> bool:
    """Return whether CUDA graphs can be used on the device: it is a CUDA device, and there is one process only."""
    return device.type == "cuda" and Ranks.current().world == 1


def recorder_if(wanted: bool, device: torch.device) -> CudaRecorder | None:
    """Return a recorder where recorded steps are wanted and the device can use them, else None."""
    return CudaRecorder(device) if wanted and can_use_cuda_graphs(device) else None


def need_cuda_graphs(device: torch.device) -> None:
    """Raise an error where `cuda_graphs` cannot be used.

    Raises:
        ClusterqError: there is no CUDA device, or several processes share the steps.
    """
    if not can_use_cuda_graphs(device):
        world = Ranks.current().world
        where = f"{world} processes" if world > 1 else f"the device {device.type}"
        raise ClusterqError(f"found {where}, expected one process on a CUDA device; leave it out.", setting="cuda_graphs")
