"""Record of one forward pass: which tensors modules take and return, and which functions read them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusterq_common.capture import Call, capture

ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}

# A tensor in its present state: its id and version. A change in place makes another one.
Key = tuple[int, int]


class ModuleRun(NamedTuple):
    """One run of a module.

    Attributes:
        call: name of the module, and the arguments.
        taken: the first argument as it was before the run; None if it is no tensor.
        output: what the module returned.
        returned: the output as it was then; None if it is no tensor.
    """

    call: Call
    taken: Key | None
    output: Any
    returned: Key | None


class Operation(NamedTuple):
    """One call of a torch function that reads activations.

    Attributes:
        name: the function's name, such as `add` or `__iadd__`.
        read: tensors among the arguments, those in lists included; no parameters and buffers.
        result: what the function returned; None if it is no tensor.
        within: runs of watched modules that had begun and not ended, the innermost last.
    """

    name: str
    read: list[Key]
    result: Key | None
    within: tuple[Call, ...]


class Flow(NamedTuple):
    """Record of a forward pass, in order: finished runs of the watched modules, and operations."""

    runs: list[ModuleRun]
    operations: list[Operation]


@torch.no_grad()
def record_flow(model: nn.Module, example: Tensor, watched: Mapping[str, nn.Module]) -> Flow:
    """Run a model once in eval mode, and record what flows.

    Args:
        model: a float classifier.
        example: (N, C, H, W) float32, any values.
        watched: the modules whose runs are recorded, by name.
    """
    recorder = _Recorder(tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors)
    with evaluating(model), capture(watched, before=recorder.enter, after=recorder.leave), recorder:
        model(example)
    return Flow(recorder.runs, recorder.operations)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode within the block."""
    training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(training)


class _Recorder(TorchFunctionMode):
    def __init__(self, constants: Iterable[Tensor]) -> None:
        super().__init__()
        self.runs: list[ModuleRun] = []
        self.operations: list[Operation] = []
        self._constants = {id(tensor) for tensor in constants}
        self._kept: list[Tensor] = []  # so that no id is used twice
        # Runs that have begun and not ended, with what they took.
        self._running: list[tuple[Call, Key | None]] = []

    def enter(self, call: Call) -> None:
        self._running.append((call, self._key(call.args[0] if call.args else None)))

    def leave(self, call: Call, output: Any) -> None:
        _, taken = self._running.pop()
        self.runs.append(ModuleRun(call, taken, output, self._key(output)))

    def _key(self, value: Any) -> Key | None:
        return self._key_of(value) if isinstance(value, Tensor) else None

    def _key_of(self, tensor: Tensor) -> Key:
        self._kept.append(tensor)
        return id(tensor), tensor._version

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = _tensors([*args, *(kwargs or {}).values()])
        read = [self._key_of(tensor) for tensor in arguments if id(tensor) not in self._constants]
        result = func(*args, **(kwargs or {}))
        if read:
            within = tuple(call for call, _ in self._running)
            self.operations.append(Operation(getattr(func, "__name__", ""), read, self._key(result), within))
        return result


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among arguments, those in lists included (concatenation)."""
    tensors = []
    for value in values:
        tensors += _tensors(value) if isinstance(value, list | tuple) else [value] if isinstance(value, Tensor) else []
    return tensors
