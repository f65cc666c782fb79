"""Hooks on layers, which exist within a block only."""

import copy

import pytest
import torch
from torch import Tensor, nn

from clusterq_common.capture import Call, capture, submodules


class Scaled(nn.Module):
    def forward(self, x: Tensor, *, by: float = 1.0) -> Tensor:
        return by * x


def test_runs_are_seen_in_order_and_an_output_can_be_replaced() -> None:
    net = nn.Sequential(Scaled(), nn.ReLU())
    seen: list[tuple[str, Tensor]] = []

    def doubled(call: Call, output: Tensor) -> Tensor | None:
        return 2 * output if call.name == "0" else None

    with (
        capture(submodules(net, ["1", "0"]), before=lambda call: seen.append((call.name, call.args[0]))),
        capture(submodules(net, ["0", "1"]), after=doubled),
    ):
        result = net(torch.tensor([-1.0, 3.0]))
    assert result.tolist() == [0.0, 6.0]
    assert [(name, x.tolist()) for name, x in seen] == [("0", [-1.0, 3.0]), ("1", [-2.0, 6.0])]


def test_arguments_can_be_replaced() -> None:
    layer = Scaled()
    with capture({"scaled": layer}, before=lambda call: (call.args[0] + 1,)):
        assert layer(torch.tensor([1.0]), by=3.0).tolist() == [6.0]


def test_keywords_are_part_of_a_run() -> None:
    layer, given = Scaled(), []
    with capture({"scaled": layer}, before=given.append, after=lambda call, _: given.append(call)):
        layer(torch.ones(1), by=3.0)
    assert [(call.name, len(call.args), call.kwargs) for call in given] == [("scaled", 1, {"by": 3.0})] * 2


def test_hooks_end_with_the_block_and_do_not_follow_copies() -> None:
    layer, names = nn.ReLU(), []
    with pytest.raises(KeyError), capture({"relu": layer}, before=lambda call: names.append(call.name)):
        copy.deepcopy(layer)(torch.zeros(1))
        assert names == []
        layer(torch.zeros(1))
        raise KeyError
    layer(torch.zeros(1))
    assert names == ["relu"]
    assert not layer._forward_pre_hooks
