"""Checkpoints as training programs leave them."""

import argparse
import datetime
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.weights import load_weights, read_checkpoint


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))


STATE: dict[str, Tensor] = network().state_dict()
OTHER = network().state_dict()


def under(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def loaded(tmp_path: Path, content: Any, key: str | None = None) -> tuple[bool, str]:
    """Load a checkpoint; return whether the network has the weights of STATE, and the remarks."""
    torch.save(content, tmp_path / "file.pth")
    model = network()
    remarks = load_weights(model, read_checkpoint(tmp_path / "file.pth"), "file.pth", key)
    return all(torch.equal(value, STATE[name]) for name, value in model.state_dict().items()), "; ".join(remarks)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (STATE, ""),
        (OrderedDict(STATE), ""),
        ({"net": under("module."), "acc": 93.1, "epoch": 199}, "taken from 'net' in file.pth; 'module.' is taken off"),
        (under("_orig_mod."), "'_orig_mod.' is taken off"),
        (under("module._orig_mod."), "'module._orig_mod.' is taken off"),
        (under("module.module."), "'module.module.' is taken off"),
        ({"state_dict": under("model."), "global_step": 10, "hyper_parameters": {"lr": 0.1}}, "'state_dict'"),
        ({"state_dict": {**under("model."), "loss.weight": torch.ones(4)}}, "1 entries are left out: 'loss.weight'"),
        ({"model_ema": STATE, "epoch": 3}, "'model_ema'"),
        ({"ema": {"model": {"net": STATE}}}, "'ema.model.net'"),
        ({"state_dict": STATE, "args": argparse.Namespace(lr=0.1, out=PurePosixPath("x"))}, "'state_dict'"),
        ({"model": STATE, "saved": datetime.datetime(2026, 1, 2), "took": datetime.timedelta(hours=3)}, "'model'"),
        ({"model": STATE, "best": np.float64(93.1), "seen": np.int64(3)}, "'model'"),
        ({**STATE, "total_ops": torch.zeros(1), "1.total_params": torch.zeros(1)}, "2 entries are left out"),
        ({name: value.numpy() for name, value in STATE.items()}, ""),
        ({"a": STATE, "b": {name: value.clone() for name, value in STATE.items()}}, "'a'"),
        ({"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(8)}}, "param_groups": [{"lr": 0.1}]}}, "'model'"),
    ],
)
def test_weights_are_found_and_the_choice_is_told(content: Any, told: str, tmp_path: Path) -> None:
    same, remarks = loaded(tmp_path, content)
    assert same
    assert told in remarks
    assert bool(remarks) == bool(told)


def test_narrow_weights_are_taken(tmp_path: Path) -> None:
    torch.save({name: value.half() for name, value in STATE.items()}, tmp_path / "half.pth")
    model = network()
    load_weights(model, read_checkpoint(tmp_path / "half.pth"), "half.pth")
    assert all(value.dtype == STATE[name].dtype for name, value in model.state_dict().items())
    assert torch.allclose(model.state_dict()["0.weight"], STATE["0.weight"], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_integers_are_no_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    """Those of a quantized model mean nothing without their scales."""
    name = next(name for name, value in STATE.items() if value.dim() > 1)
    with pytest.raises(
        ClusterqError, match=rf"holds {str(dtype).removeprefix('torch.')} values in {name}, expected plain floats"
    ):
        loaded(tmp_path, {**STATE, name: STATE[name].to(dtype)})


def test_of_several_that_fit_one_has_to_be_named(tmp_path: Path) -> None:
    both = {"state_dict": OTHER, "state_dict_ema": STATE, "epoch": 3}
    with pytest.raises(
        ClusterqError, match=r"several weights that fit, at 'state_dict', 'state_dict_ema'.*weights_key=state_dict"
    ):
        loaded(tmp_path, both)
    assert loaded(tmp_path, both, "state_dict_ema") == (True, "")
    assert not loaded(tmp_path, both, "state_dict")[0]
    with pytest.raises(
        ClusterqError, match=r"^weights_key: file.pth has no weights at 'ema', expected one of 'state_dict', 'state_dict_ema'"
    ):
        loaded(tmp_path, both, "ema")


@pytest.mark.parametrize("prefixes", [("model.", "ema."), ("", "ema."), ("module.encoder_q.", "module.encoder_k.")])
def test_of_several_in_one_dict_one_has_to_be_named(prefixes: tuple[str, str], tmp_path: Path) -> None:
    """As a network and its moving average lie beside each other in Lightning's and MoCo's files."""
    other = {name: value * 2 for name, value in STATE.items()}
    content = {"state_dict": under(prefixes[0]) | under(prefixes[1], other)}
    with pytest.raises(ClusterqError, match="holds several weights that fit, at") as refused:
        loaded(tmp_path, content)
    for prefix in prefixes:
        assert repr(f"state_dict.{prefix}".rstrip(".")) in str(refused.value)
    if prefixes[0]:
        assert loaded(tmp_path, content, f"state_dict.{prefixes[0]}".rstrip("."))[0]
    assert not loaded(tmp_path, content, f"state_dict.{prefixes[1]}".rstrip("."))[0]
    with pytest.raises(
        ClusterqError, match=r"weights_key: .* has no weights at 'state_dict.x', expected one of 'state_dict', "
    ):
        loaded(tmp_path, content, "state_dict.x")
    assert loaded(tmp_path, {"state_dict": under(prefixes[0]) | under(prefixes[1])})[0], "equal ones are no choice"


def test_tensors_that_are_no_values_are_refused(tmp_path: Path) -> None:
    name = next(name for name, value in STATE.items() if value.dim() > 1)
    for changed, words in (
        ({name: STATE[name].to_sparse()}, "a sparse tensor in"),
        ({name: STATE[name].to("meta")}, "no values in"),
    ):
        with pytest.raises(ClusterqError, match=words):
            loaded(tmp_path, {**STATE, **changed})


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08", "packed by gzip"),
        (b"\x89HDF\r\n\x1a\n", "as Keras writes"),
    ],
)
def test_what_lies_in_the_place_of_weights_is_named(begin: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(begin)
    with pytest.raises(ClusterqError, match=words):
        read_checkpoint(tmp_path / "w.pth")


def test_values_that_the_file_does_not_hold_are_not_compared(tmp_path: Path) -> None:
    giant = {**STATE, "1.num_batches_tracked": torch.zeros((), dtype=torch.int64).expand(1 << 40)}
    with pytest.raises(ClusterqError, match="several weights that fit"):
        loaded(tmp_path, {"a": giant, "b": giant})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3}, r"holds a dict of int and no state dict"),
        ([STATE], r"holds a list and no state dict"),
        ({}, r"a dict of nothing"),
        (
            {"net": {"0.weight": STATE["0.weight"]}},
            r"does not fit the architecture: missing 1.weight.*its weights lie at 'net'",
        ),
        (under("module.", {**STATE, "0.weight": torch.ones(1)}), r"does not fit the architecture"),
    ],
)
def test_what_does_not_fit_is_told_with_what_the_file_holds(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterqError, match=words):
        loaded(tmp_path, content)


class Whole(nn.Module):
    pass


def test_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    torch.save(Whole(), tmp_path / "whole.pth")
    with pytest.raises(
        ClusterqError, match=r"holds an object of the class tests\.common\.test_checkpoints\.Whole, which only code"
    ):
        read_checkpoint(tmp_path / "whole.pth")
    torch.jit.script(network()).save(tmp_path / "script.pt")
    with pytest.raises(ClusterqError, match=r"is a TorchScript archive, expected a state dict"):
        read_checkpoint(tmp_path / "script.pt")
    torch.save(STATE, tmp_path / "broken.pth")
    broken = (tmp_path / "broken.pth").read_bytes()
    (tmp_path / "broken.pth").write_bytes(broken[: len(broken) // 2] + broken[len(broken) // 2 + 100 :])
    with pytest.raises(ClusterqError, match=r"is no plain state dict"):
        read_checkpoint(tmp_path / "broken.pth")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(ClusterqError, match=r"is an ONNX file, expected the PyTorch weights"):
        read_checkpoint(tmp_path / "net.onnx")
