"""Integer weights on their way into an ONNX file: packing, folded factors, types by opset."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.onnx_file import onnx_model
from clusterq_common.export.onnx_types import choose_opset
from clusterq_common.export.qdq import size_of
from clusterq_common.export.weights import IntegerWeight, folded, pack
from tests.finetune.export_nets import SPEC, Plain, student_of


def test_size_on_disk() -> None:
    class Wide(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Conv2d(6, 8 * 512, 3, groups=2)
            self.second_bn, self.head = nn.BatchNorm2d(8 * 512), nn.Linear(8 * 512, 10)

    student, _ = student_of(Wide, bits="w4a4", weight_granularity="tensor")
    model, *_ = onnx_model(student, SPEC, OnnxConfig(batchnorm="keep"))
    parts = size_of(student)
    weights = sum(layer.weight.numel() for layer in student.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    assert parts == {"integers": weights // 2, "scales": 3 * 4, "float32": 4 * weights}
    floats = 4 * sum(tensor.numel() for name, tensor in student.named_parameters() if "bn" in name or name.endswith("bias"))
    floats += 4 * sum(2 * module.num_features for module in student.modules() if isinstance(module, nn.BatchNorm2d))
    assert model.ByteSize() < 1.05 * (parts["integers"] + parts["scales"] + floats)


@given(st.integers(2, 8), st.lists(st.integers(-128, 255), min_size=1, max_size=40))
def test_packing(bits: int, values: list[int]) -> None:
    """Against one bit after the other; at 4 bits against onnx's own."""
    packed = pack(np.array(values), bits)
    string = "".join(format(value % 2**bits, f"0{bits}b")[::-1] for value in values)
    string += "0" * (-len(string) % 8)
    assert packed == bytes(int(string[at : at + 8][::-1], 2) for at in range(0, len(string), 8))
    if bits == 4:
        nibbles = [(value + 8) % 16 - 8 for value in values]
        tensor = onnx.helper.make_tensor("t", onnx.TensorProto.INT4, [len(values)], packed, raw=True)
        assert numpy_helper.to_array(tensor).astype(int).tolist() == nibbles


@given(
    st.integers(2, 8),
    st.booleans(),
    st.lists(st.floats(-4, 4), min_size=3, max_size=3),
    st.lists(st.integers(0, 255), min_size=6, max_size=6),
)
def test_folding_a_factor(bits: int, signed: bool, factors: list[float], raw: list[int]) -> None:
    """The same real values times the factor, on the same grid; or a refusal, and only where the lowest integer would turn around."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    integers = np.array([low + value % 2**bits for value in raw], np.int32).reshape(3, 2)
    points = np.zeros(3, np.int32) if signed else np.array([0, high, high // 2], np.int32)
    weight = IntegerWeight(integers, np.array([0.1, 0.2, 0.3], np.float32), points, low, high, bits)
    factor = np.array(factors)
    stuck = signed & (factor < 0)[:, None] & (integers == low)
    assert (folded(weight, factor) is None) == bool(stuck.any())
    before = (integers - points[:, None]) * weight.scale.astype(float)[:, None] * factor[:, None]
    for lowest in ("widen", "zero-point", "clip"):
        made = folded(weight, factor, lowest)
        assert made is not None
        result, moved = made
        assert moved == (int(stuck.sum()) if lowest == "clip" else 0)
        assert lowest == "zero-point" or not signed or not result.zero_point.any()
        assert low <= result.integers.min()
        assert result.integers.max() <= high + (lowest == "widen" and bool(stuck.any()))
        assert result.widened == (lowest == "widen" and bool(stuck.any()))
        assert (result.scale > 0).all()
        after = (result.integers - result.zero_point[:, None]) * result.scale.astype(float)[:, None]
        steps = result.scale.astype(float)[:, None] * (stuck if lowest == "clip" else 0)
        assert np.allclose(before - steps, after, rtol=1e-5, atol=1e-30)


def test_opsets() -> None:
    assert [choose_opset([bits, 8], "packed", None) for bits in range(2, 9)] == [25, 21, 21, 18, 18, 18, 18]
    assert choose_opset([2], "int4", 22) == 22
    assert choose_opset([], "packed", None) == 18
    with pytest.raises(ClusterqError, match=r"^opset: 18 has no type for weights of 4 bits, expected 21.*integers=int8"):
        choose_opset([4, 8], "packed", 18)
    with pytest.raises(ClusterqError, match=r"weights of 2 bits, expected 25.*integers=int4"):
        choose_opset([2, 4], "packed", 21)
