"""The edge between the library and a program of someone's own: silence unless asked, and errors that speak of arguments."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import OnProgress, heard_by
from clusterq_common.quant.convert import quantizers

Log = Callable[[str], None]


@contextmanager
def called(log: Log | None = None, progress: OnProgress | None = None) -> Iterator[None]:
    """Within this, what the commands would print goes to `log` and `progress`; flags in errors become arguments.

    Raises:
        ClusterqError: the one that was raised within, in other words.
    """
    with heard_by(None if log is None else lambda line: log(without_flags(line)), progress):
        try:
            yield
        except ClusterqError as error:
            raise ClusterqError(without_flags(str(error))).with_traceback(error.__traceback__) from error.__cause__


def without_flags(sentence: str) -> str:
    """A sentence for the command line as one for Python.

    >>> without_flags("--val: x is no folder; try a smaller --reconstruct-lr with --overwrite.")
    'val: x is no folder; try a smaller reconstruct_lr.'
    """
    sentence = sentence.replace(" with --overwrite", "")
    return re.sub(r"(?<![\w-])--([a-z][a-z0-9-]*)", lambda found: found[1].replace("-", "_"), sentence)


def device_of(model: nn.Module) -> torch.device:
    """The device of a network: that of its first parameter, the CPU where it has none."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def need_calibrated(student: nn.Module) -> None:
    """Refuse a student that cannot be run yet.

    Raises:
        ClusterqError: a quantizer of it has no range.
    """
    missing = next((name for name, quantizer in quantizers(student).items() if not quantizer.calibrated), None)
    if missing is not None:
        raise ClusterqError(f"student: {missing} has no range yet, expected a calibrated student; call calibrate first.")
