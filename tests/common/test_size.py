"""Sizes of images: what is read, what is written, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.size import LARGEST_SIDE, parse_size, show_size, sides
from clusterq_common.teacher.spec import InputSpec, TeacherConfig

SIDES = st.integers(1, LARGEST_SIDE)


def spec_of(size: object) -> InputSpec:
    return InputSpec.validated({"size": size, "channels": 1, "num_classes": 2, "mean": (0.5,), "std": (0.5,)})


@given(height=SIDES, width=SIDES)
def test_what_is_shown_is_read_again(height: int, width: int) -> None:
    size = parse_size((height, width))
    assert sides(size) == (height, width)
    assert isinstance(size, int) == (height == width), "a square is one number, whatever it came as"
    assert size == parse_size(f"{height}x{width}") == parse_size([height, width]) == parse_size(show_size(size))
    spec = spec_of(f"{height}x{width}")
    assert (spec.height, spec.width, spec.shape, spec.longer_side) == (height, width, (1, height, width), max(height, width))
    assert spec.small == (max(height, width) <= 64)
    assert spec == spec_of(size) == InputSpec.model_validate_json(spec.model_dump_json())


@given(side=SIDES)
def test_a_square_is_written_as_it_always_was(side: int) -> None:
    assert show_size(parse_size(str(side))) == side
    assert json.loads(spec_of(side).model_dump_json())["size"] == side
    assert TeacherConfig.validated({"arch": "a", "input_size": str(side)}).model_dump(mode="json")["input_size"] == side


@given(text=st.text(alphabet="0123456789xX ,.*-+eé٣", max_size=12))
def test_any_other_text_is_refused(text: str) -> None:
    parts = text.split("x")
    digits = all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts) and len(parts) <= 2
    if digits and all(1 <= int(part) <= LARGEST_SIDE for part in parts):
        assert sides(parse_size(text)) == (int(parts[0]), int(parts[-1]))
    else:
        with pytest.raises(ValueError, match=r"sides must lie between|expected one side of a square"):
            parse_size(text)


@pytest.mark.parametrize(
    "value", [None, True, [True, 8], 8.0, (8, 8, 8), [8], [], {}, "", "x", "64x", "x64", "64x0", 0, -8, 4097, (1, 4097)]
)
def test_what_is_no_size_is_refused_in_one_sentence(value: object) -> None:
    with pytest.raises(ClusterqError) as refused:
        spec_of(value)
    assert str(refused.value).startswith("size: ")
    if value is not None:
        with pytest.raises(ClusterqError, match=r"^input_size: .*") as refused:
            TeacherConfig.validated({"arch": "a", "input_size": value})
        assert "\n" not in str(refused.value)


def test_a_size_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec_of(8).size = 9
