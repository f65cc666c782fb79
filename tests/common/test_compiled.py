"""Errors and warnings where torch cannot compile."""

from functools import partial
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from clusterq_common.device.compiled import Compiled, need_compiler
from clusterq_common.errors import ClusterqError


def broken(*_: object) -> NoReturn:
    raise RuntimeError("no such instruction")


@pytest.fixture(autouse=True)
def broken_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))


def test_no_compiler() -> None:
    with pytest.raises(
        ClusterqError, match=r"^compile: torch .* cannot compile here \(.*no such instruction\), expected a working C\+\+"
    ):
        need_compiler(torch.device("cpu"))


def test_an_error_of_the_network_is_its_own() -> None:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not with me")

    with pytest.raises(ValueError, match="not with me"):
        Compiled(Refusing())(torch.ones(1))


def test_a_network_that_it_cannot_compile() -> None:
    network = Compiled(nn.Linear(2, 3))
    with pytest.raises(ClusterqError, match=r"cannot compile this network \(.*no such instruction\).*leave it out\.$"):
        network(torch.ones(1, 2))
