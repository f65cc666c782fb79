"""tools/compare_mct.py without the toolkit: what it hands over, and what it refuses."""

import importlib
import sys
from types import ModuleType

import pytest
import torch

from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise
from clusterq_common.quant.bits import Bits
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from tests.conftest import ROOT, DigitsTeacher


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "model_compression_toolkit", ModuleType("model_compression_toolkit"))
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("compare_mct")


@pytest.fixture
def teacher(digits_teacher: DigitsTeacher) -> Teacher:
    fields = {"arch": digits_teacher.flags[1], "weights": str(digits_teacher.weights)}
    return load_teacher(
        TeacherConfig.validated({**fields, "input_size": 8, "in_channels": 1, "num_classes": 10, "mean": [0.3], "std": [0.2]})
    )


def test_the_toolkits_images_are_normalised_as_the_classifier_wants(tool: ModuleType, teacher: Teacher) -> None:
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        given = tool.of_pixels(teacher)(pixels.float() / 255)
        assert torch.allclose(given, teacher.model(normalise(pixels, teacher.spec)), atol=1e-4)


def test_bits_that_the_toolkits_target_has_not_are_refused(tool: ModuleType, teacher: Teacher) -> None:
    with pytest.raises(ClusterqError, match="w4a4 has activations at 4 bits, expected 8"):
        tool.quantize(teacher, torch.zeros(2, 1, 8, 8), Bits(4, 4), 0)
