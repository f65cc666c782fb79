"""Blocks are found in networks of several kinds, and give alone what they give in the network."""

import pytest
import torch
from pytorchcv.model_provider import get_model
from torch import Tensor, nn

from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.teacher.factory import build_factory
from clusterq_finetune.recipes.block_data import BlockData
from clusterq_finetune.recipes.blocks import Parts, find_blocks
from tests.conftest import FACTORY
from tests.finetune.small_student import SPEC, parts_of, pixels, prepared, settings, small_net

CPU = torch.device("cpu")


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Odd(nn.Module):
    """A module for the addition, a module of two tensors that holds a layer, and a layer that runs twice."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.conv(x) + y

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.add = nn.Conv2d(2, 2, 3, padding=1), Sum()

        def forward(self, x: Tensor) -> Tensor:
            return self.add(x, self.conv(x))

    def __init__(self) -> None:
        super().__init__()
        self.unit, self.pair, self.twice, self.head = Odd.Unit(), Odd.Pair(), nn.Conv2d(2, 2, 1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.unit(x)
        x = self.twice(self.twice(self.pair(x, x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "size", "blocks", "layers"),
    [("resnet20_cifar10", 32, 11, 22), ("resnet18", 224, 10, 21), ("mobilenetv2_w1", 224, 20, 54)],
)
def test_blocks_of_pytorchcv_networks_are_their_units(name: str, size: int, blocks: int, layers: int) -> None:
    model = get_model(name, pretrained=False)
    parts, left, _ = parts_of(model, size, 3, "block")
    names = [str(block) for block in parts]
    assert left == []
    assert len(parts) == blocks
    units = {module for module, _ in model.named_modules() if module.count(".") == 2 and "unit" in module.rpartition(".")[2]}
    assert units <= set(names)
    assert set(names) - units == {"features.init_block", "output", *({"features.final_block"} & set(names))}
    single, left, _ = parts_of(model, size, 3, "layer")
    assert left == []
    assert len(single) == layers
    assert all(len(block.layers) == 1 for block in single)
    assert all(block.modules[0] != block.layers[0] for block in single[:-1]), "BatchNorm and activation are inside"


@pytest.mark.parametrize("parts", ["block", "layer"])
def test_plain_sequences_fall_back_to_layers(parts: Parts) -> None:
    blocks, left, _ = parts_of(build_factory(FACTORY), 8, 1, parts)
    assert left == []
    assert [block.modules for block in blocks][:2] == [("0", "1", "2"), ("3", "4", "5")]
    assert blocks[-1].modules == ("17",)


def test_blocks_of_a_factory_of_ones_own() -> None:
    blocks, _, _ = parts_of(small_net(), 8, 2, "block")
    assert [block.modules for block in blocks] == [("0", "1", "2"), ("3",), ("4",), ("7",)]
    blocks, _, _ = parts_of(small_net(), 8, 2, "layer")
    assert [block.modules for block in blocks][1:3] == [("3.deep", "3.deep_norm", "3.relu"), ("3.point", "3.norm")]
    blocks, left, _ = parts_of(Odd(), 8, 2, "block")
    assert [(block.modules, block.layers) for block in blocks] == [
        (("unit",), ("unit.conv",)),
        (("pair.conv",), ("pair.conv",)),
        (("head",), ("head",)),
    ]
    assert left == ["twice"], "what runs twice is no block"


def test_a_network_in_training_stays_as_it_is() -> None:
    model, example = small_net().train(), torch.rand(1, 2, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_blocks(model, quantizable_layers(model, example), example, "block")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_block_gives_what_it_gives_in_the_network() -> None:
    student, teacher = prepared(settings())
    blocks, _, _ = parts_of(teacher.model, 8, 2, "block")
    seen: list[Tensor] = []
    for block in blocks:
        held = BlockData(teacher.model, student, block, pixels(20), SPEC, CPU, 1e9)
        again = BlockData(teacher.model, student, block, pixels(20), SPEC, CPU, 0)
        assert held.held is not None
        assert again.held is None
        indices = torch.tensor([3, 19, 3])
        for value, other in zip(held.batch(indices), again.batch(indices), strict=True):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
        batch = held.batch(torch.arange(20))
        torch.testing.assert_close(block.of(teacher.model)(batch.float_input.clone()), batch.target, rtol=1e-5, atol=1e-6)
        assert held.bytes == 4 * sum(tensor.numel() for tensor in batch)
        seen.append(batch.student_input)
    torch.testing.assert_close(seen[0], (pixels(20).float() / 255 - 0.5) / 0.25, rtol=1e-4, atol=1e-5)
