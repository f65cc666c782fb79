"""Torch's operations recorded and repeated in the same memory, as a CUDA graph repeats kernels: a stand-in where there is no GPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clusterq_common.device.cuda_graph import Body

Operation = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]


class Tape(TorchDispatchMode):
    """Every operation that runs, with its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def repeat(self) -> None:
        """All of it again, results where they were. Numbers that Python had in its hands stay what they were, as in a graph."""
        for func, args, kwargs, results in self.operations:
            schema = func._schema
            if any(out.alias_info is not None and not out.alias_info.is_write for out in schema.returns):
                continue  # a view of memory that is the same
            again = func(*args, **kwargs)
            if not schema.is_mutable:
                for held, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                    if isinstance(held, Tensor):
                        held.copy_(new)


class TapeRecorder:
    """A stand-in for CUDA graphs. Recording runs the step, so the first replay has nothing left to do."""

    def __init__(self) -> None:
        self.plain_steps, self.recorded, self.replays = 0, 0, 0

    def plain(self, body: Body) -> dict[str, Tensor]:
        self.plain_steps += 1
        return body()

    def record(self, body: Body) -> Body:
        self.recorded += 1
        ran = True
        with Tape() as tape:
            values = body()

        def replay() -> dict[str, Tensor]:
            nonlocal ran
            if not ran:
                tape.repeat()
            ran, self.replays = False, self.replays + 1
            return {name: value.clone() for name, value in values.items()}

        return replay
