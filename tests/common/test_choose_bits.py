"""Bits by layer: allocation against every choice there is, sensitivities against single converted layers, sizes against a real file."""

import itertools
import json
import struct

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from clusterq_common.errors import ClusterqError
from clusterq_common.export.description import Description, describe
from clusterq_common.export.packed import packed_file
from clusterq_common.quant.allocation import allocate
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.choice_config import BitChoice
from clusterq_common.quant.choose_bits import (
    average_for_size,
    average_weight_bits,
    choose_input_bits,
    choose_weight_bits,
    starting_point,
    student_bytes,
    with_choice,
)
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert, quantizers
from clusterq_common.quant.sensitivity import WIDTHS, measure_sensitivity, passes
from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.teacher.spec import Geometry
from tests.finetune.small_student import SPEC, small_net

LAYERS = st.lists(
    st.tuples(st.integers(1, 9), st.dictionaries(st.integers(2, 5), st.floats(0, 10), min_size=1)), min_size=1, max_size=5
)


@given(LAYERS, st.integers(0, 250))
def test_allocation_is_the_best_of_all(layers: list[tuple[int, dict[int, float]]], budget: int) -> None:
    sizes, errors = [size for size, _ in layers], [options for _, options in layers]
    fitting = [
        sum(options[bits] for options, bits in zip(errors, widths, strict=True))
        for widths in itertools.product(*errors)
        if sum(size * bits for size, bits in zip(sizes, widths, strict=True)) <= budget
    ]
    allocated = allocate(sizes, errors, budget)
    if not fitting:
        assert allocated is None
        return
    assert allocated is not None
    assert sum(size * bits for size, bits in zip(sizes, allocated, strict=True)) <= budget
    assert sum(options[bits] for options, bits in zip(errors, allocated, strict=True)) == pytest.approx(min(fitting))


def test_a_large_budget_is_kept_and_nearly_used() -> None:
    sizes = [7_654_321, 1_234_567, 89]
    errors = [{bits: weight * 4.0**-bits for bits in WIDTHS} for weight in (1.0, 3.0, 50.0)]
    allocated = allocate(sizes, errors, 4 * sum(sizes))
    assert allocated is not None
    assert 3.5 * sum(sizes) < sum(size * bits for size, bits in zip(sizes, allocated, strict=True)) <= 4 * sum(sizes)
    assert allocated[2] == 8, "a few weights that matter"


def images() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return list(torch.randn(24, 2, 8, 8).split(12))


@pytest.mark.parametrize(
    "quant", [QuantConfig(), QuantConfig(quantizer="asymmetric", range="minmax", weight_granularity="tensor")]
)
def test_sensitivity_is_that_of_a_student_with_one_rounded_tensor(quant: QuantConfig) -> None:
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    order = quantizable_layers(net, images()[0])
    calls: list[int] = []
    sensitivity = measure_sensitivity(net, order, images(), quant, inputs=True, advance=calls.append)
    assert sum(calls) == passes(len(order), weights=True, inputs=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [layer.name for layer in sensitivity] == order
    assert sensitivity[0].input_kl == {}, "the image keeps its bits"

    wanted = F.log_softmax(torch.cat([net(batch) for batch in images()]).double(), dim=1)
    for position, bits, what in ((0, 2, "w2a32"), (1, 3, "w3a32"), (1, 4, "w32a4"), (4, 2, "w32a2")):
        config = QuantConfig.validated({**quant.model_dump(), "bits": "w32a32", "layer_bits": (f"{order[position]}={what}",)})
        student = convert(net, config, images()[0]).eval()
        calibrate(student, images(), config, seed=position)
        given = F.log_softmax(torch.cat([student(batch) for batch in images()]).double(), dim=1)
        slow = float((wanted.exp() * (wanted - given)).sum(1).mean().detach())
        measured = sensitivity[position].weight_kl if what.endswith("a32") else sensitivity[position].input_kl
        assert measured[bits] == pytest.approx(slow, rel=1e-3, abs=1e-9)


def test_more_bits_go_where_less_would_hurt() -> None:
    net = small_net()
    order = quantizable_layers(net, images()[0])
    measured = measure_sensitivity(net, order, images(), QuantConfig())
    layers = choose_weight_bits(starting_point(QuantConfig(), measured), 3.5, "average_bits")
    assert 3 < average_weight_bits(layers) <= 3.5

    def error(widths: list[int]) -> float:
        return sum(layer.weight_kl[bits] for layer, bits in zip(measured, widths, strict=True))

    assert error([layer.weight_bits for layer in layers]) <= error([3] * len(layers))


def test_given_bits_stay_and_count() -> None:
    net = small_net()
    order = quantizable_layers(net, images()[0])
    config = QuantConfig(bits="w4a6", first_last_bits=8, layer_bits=(f"{order[1]}=w7a5",))
    measured = measure_sensitivity(net, order, images(), config, inputs=True)
    layers = choose_input_bits(choose_weight_bits(starting_point(config, measured), 6, "average_bits"), 5)
    assert [(layer.weight_bits, layer.fixed) for layer in (layers[0], layers[1], layers[-1])] == [
        (8, True),
        (7, True),
        (8, True),
    ]
    assert average_weight_bits(layers) <= 6
    assert layers[1].input_bits == 5
    assert with_choice(config, layers).layer_bits[-1] == f"{order[1]}=w7a5", "patterns of one's own come last and win"
    with pytest.raises(ClusterqError, match="leave at least"):
        choose_weight_bits(layers, 2, "average_bits")
    student = convert(net, with_choice(config, layers), images()[0])
    made = quantizers(student)
    for layer in layers:
        assert made[f"{layer.name}.weight_quantizer"].bits == layer.weight_bits
        assert made[f"{layer.name}.input_quantizer"].bits == (8 if layer is layers[0] else layer.input_bits)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_bytes_are_those_of_the_packed_file(granularity: str) -> None:
    net = small_net()
    order = quantizable_layers(net, images()[0])
    config = QuantConfig.validated({"weight_granularity": granularity})
    measured = measure_sensitivity(net, order, images(), config)
    start = starting_point(config, measured)
    free = student_bytes(net, choose_weight_bits(start, 2, "x"), config)
    size = free + 60
    layers = choose_weight_bits(start, average_for_size(net, start, config, BitChoice(target_size=f"{size}b")), "target_size")
    assert free <= student_bytes(net, layers, config) <= size
    student = convert(net, with_choice(config, layers), images()[0])
    calibrate(student, images())
    data = packed_file(student, description(config))
    (header,) = struct.unpack("<Q", data[:8])
    tensors = json.loads(data[8 : 8 + header])
    assert sum(
        value["data_offsets"][1] - value["data_offsets"][0] for name, value in tensors.items() if name != "__metadata__"
    ) == (student_bytes(net, layers, config))
    with pytest.raises(ClusterqError, match="give at least that"):
        average_for_size(net, start, config, BitChoice(target_size="100b"))


def description(config: QuantConfig) -> Description:
    return describe(
        "small", config, Geometry(crop_pct=None, interpolation="bilinear"), SPEC, clusterq="0", teacher="", student=""
    )


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("2kB", 2000), ("1.5MiB", 1572864), (" 3 gb ", 3_000_000_000)])
def test_sizes(text: str, size: int) -> None:
    assert BitChoice.validated({"target_size": text}).target_bytes == size


@pytest.mark.parametrize("text", ["", "kB", "-1kB", "1 PB", "0", "1e3", "1,5MB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ClusterqError, match=r"target.size"):
        BitChoice.validated({"target_size": text})


def test_aims_exclude_each_other() -> None:
    with pytest.raises(ClusterqError, match="exclude each other"):
        BitChoice.validated({"average_bits": 4, "max_drop": 1})
