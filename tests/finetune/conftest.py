"""Shared fixtures of the tests of fine-tuning and of exported files."""

import resource
from collections.abc import Iterator
from functools import cache

import pytest
from torch.onnx._internal.exporter import _registration


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> Iterator[None]:
    """torch's ONNX exporter reads the source of all its operators at each export, a third of a small network's time: once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        apis = _registration.onnxscript_apis
        patch.setattr(apis, "get_torchlib_ops", cache(apis.get_torchlib_ops))
        yield


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A test that may not grow the process by half a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10, "KiB"
