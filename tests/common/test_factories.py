"""Teachers from a file of the user's: factories that cannot be used, their sizes, their errors."""

import sys
from pathlib import Path

import pytest
import torch

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.load import build_architecture, load_teacher
from tests.common.teachers import FACTORY, own


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("nothing", "has no function nothing"),
        ("broken", "RuntimeError: no luck"),
        ("ended", r"failed with SystemExit: 3 \(mine.py, line"),
        ("mute", r"failed with Mute \(mine.py, line"),
        ("number", "returned int"),
        ("without_norm", "no BatchNorm layer"),
        ("scripted", "returned a TorchScript module"),
        ("without_values", "meta device, which holds no values"),
        ("complex_numbers", "gives complex64 numbers, expected logits in floating point"),
        ("integers", "gives int64 numbers, expected logits in floating point"),
        ("in_place", "changes the images that it is given"),
        ("with_dropout", "for the same images differ from call to call"),
        ("mixing", "depend on the other images of its batch"),
    ],
)
def test_factories_that_cannot_be_used(factory: str, function: str, sentence: str) -> None:
    with pytest.raises(ClusterqError, match=sentence):
        load_teacher(own(factory, function))


def test_factory_needs_its_sizes_and_they_must_fit(factory: str) -> None:
    with pytest.raises(ClusterqError, match=r"^input_size, num_classes"):
        load_teacher(own(factory, input_size=None, num_classes=None))
    assert load_teacher(own(factory, in_channels=None)).spec.channels == 1, "as many as the mean has numbers"
    with pytest.raises(ClusterqError, match=r"logits of shape \(1, 5\)"):
        load_teacher(own(factory, num_classes=5))
    with pytest.raises(ClusterqError, match="cannot run on a 3x8x8 image"):
        load_teacher(own(factory, in_channels=3, mean="0,0,0", std="1,1,1"))
    with pytest.raises(ClusterqError, match=r"^weights is missing"):
        load_teacher(own(factory, weights=None))


def test_a_factory_imports_the_files_beside_it(tmp_path: Path) -> None:
    # Two folders with a file of the same name: each factory gets its own.
    for folder, channels in (("one", 4), ("two", 6)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "blocks.py").write_text(f"CHANNELS = {channels}\n")
        (tmp_path / folder / "net.py").write_text(FACTORY.replace("4", "CHANNELS") + "from blocks import CHANNELS\n")
        model, _ = build_architecture(own(str(tmp_path / folder / "net.py")))
        assert model[0].out_channels == channels
    assert "blocks" not in sys.modules
    assert not any(str(tmp_path) in entry for entry in sys.path)


def test_a_factory_may_hold_dataclasses(tmp_path: Path) -> None:
    lines = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Sizes:\n    channels: int = 4\n"
    (tmp_path / "net.py").write_text(lines + FACTORY)
    assert isinstance(build_architecture(own(str(tmp_path / "net.py")))[0], torch.nn.Module)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def net():\n    return undefined_name\n", r"NameError: .*\(net.py, line 2: return undefined_name\); mend the file"),
        ("import helper\n", r"ZeroDivisionError: .*\(helper.py, line 1: 1 / 0\)"),
        ("def net(:\n", r"SyntaxError: .*\(net.py, line 1\)"),
        ("import no_such_package\n", r"ModuleNotFoundError: .*\(net.py, line 1: import no_such_package\)"),
    ],
)
def test_an_error_in_a_factory_names_its_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(text)
    (tmp_path / "helper.py").write_text("1 / 0\n")
    with pytest.raises(ClusterqError, match=said):
        build_architecture(own(str(tmp_path / "net.py")))
