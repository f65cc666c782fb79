"""A teacher's weights: from pytorchcv's store, or from a file."""

import _codecs
import argparse
import contextlib
import datetime
import os
import re
from collections.abc import Mapping
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.files import home_folder
from clusterq_common.progress.console import remarks
from clusterq_common.run.checkpoint import archive_members, is_packed
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.state_dicts import choose_weights

KEYS_SHOWN = 3
COUNTERS = "num_batches_tracked"
# How files begin that lie in the place of weights: what they are, and what to do.
OTHER_KINDS = {
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file itself with git lfs pull"),
    b"<!DOCTYPE": ("a web page", "download the file itself"),
    b"<!doctype": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
    b"\x1f\x8b": ("packed by gzip", "unpack it"),
    b"\x89HDF": ("an HDF5 file, as Keras writes", "export the weights from PyTorch"),
}
LONGEST_BEGIN = max(map(len, OTHER_KINDS))


def weights_cache() -> Path:
    """Return the folder of pytorchcv's downloads: $TORCH_HOME/models, or ~/.torch/models as in pytorchcv itself."""
    home = os.environ.get("TORCH_HOME")
    return (Path(home) if home else home_folder("TORCH_HOME") / ".torch") / "models"


def download_weights(arch: str) -> Path:
    """The file of pytorchcv's published weights, downloaded unless it is cached; checked by pytorchcv's own SHA-1.

    Raises:
        ClusterqError: none are published for this name, or the store cannot be reached.
    """
    from pytorchcv.models import model_store

    name = arch.lower()
    if name not in model_store._model_sha1:
        raise ClusterqError(
            f"{setting_name('weights')} is missing: pytorchcv publishes no weights for {arch}; pass {setting_name('weights', 'FILE')}."
        )
    try:
        # pytorchcv prints its progress; stdout is for results.
        with contextlib.redirect_stdout(remarks()):
            return Path(model_store.get_model_file(name, local_model_store_dir_path=str(weights_cache())))
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterqError(
            f"{setting_name('weights')} is missing, and pytorchcv's weights of {arch} could not be downloaded ({type(error).__name__}); pass a "
            f"file with {setting_name('weights')}, or put the download into {weights_cache()}."
        ) from error


def read_checkpoint(path: Path) -> object:
    """Read a safetensors or PyTorch file without running any code in it.

    Beside tensors and plain containers, arrays and numbers of numpy, `argparse.Namespace`, paths and dates are read: training programs leave them
    beside the weights, and making them runs nothing.

    Raises:
        ClusterqError: missing, unreadable, or something else than a checkpoint.
    """
    if not path.is_file():
        raise ClusterqError(f"{path} does not exist, expected a .safetensors file or a PyTorch state dict.", setting="weights")
    _refuse_other_kinds(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            return _tensors_of_arrays(torch.load(path, map_location="cpu", weights_only=True))
    except SafetensorError as error:
        raise ClusterqError(f"{path} is no readable safetensors file ({error}); export it again.", setting="weights") from error
    except Exception as error:  # torch.load raises a dozen kinds for a broken or unsafe file
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = (
            f"holds an object of the class {named[1]}, which only code could read"
            if named
            else f"is no plain state dict ({type(error).__name__})"
        )
        raise ClusterqError(f"{path} {what}; save it with torch.save(model.state_dict(), ...).", setting="weights") from error


def _refuse_other_kinds(path: Path) -> None:
    """Refuse files that hold a program, and archives that unfold."""
    if path.suffix.lower() == ".onnx":
        raise ClusterqError(
            f"{path} is an ONNX file, expected the PyTorch weights it was exported from; pass their state dict (.pth, .safetensors).",
            setting="weights",
        )
    with path.open("rb") as file:
        begin = file.read(LONGEST_BEGIN)
    kind = next((kind for mark, kind in OTHER_KINDS.items() if begin.startswith(mark)), None)
    if kind is not None:
        raise ClusterqError(
            f"{path} is {kind[0]}, expected a .safetensors file or a PyTorch state dict; {kind[1]}.", setting="weights"
        )
    members = archive_members(path)
    if any(member.filename.split("/")[1:2] == ["code"] or member.filename.endswith("/constants.pkl") for member in members):
        raise ClusterqError(
            f"{path} is a TorchScript archive, expected a state dict; save it with "
            f"torch.save(torch.jit.load(...).state_dict(), ...) and pass the architecture with {setting_name('arch')}.",
            setting="weights",
        )
    if is_packed(members):
        raise ClusterqError(
            f"{path} is a packed archive, expected a plain state dict; save it with torch.save(model.state_dict(), ...).",
            setting="weights",
        )


def _harmless() -> list[Any]:
    """Classes whose objects are made without running anything of the file."""
    # numpy 2 moved the module, and files name it as the numpy that wrote them.
    multiarray = (np._core if hasattr(np, "_core") else np.core).multiarray
    made_by = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ]
    dtypes = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType") and name != "ObjectDType"]
    plain = [argparse.Namespace, SimpleNamespace, PurePosixPath, PosixPath, PureWindowsPath]
    times = [datetime.datetime, datetime.date, datetime.timedelta]
    return [*plain, *times, np.dtype, np.ndarray, _codecs.encode, *made_by, *dtypes]


def _tensors_of_arrays(value: object) -> object:
    """Turn arrays of numbers in nested dicts into tensors."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {name: _tensors_of_arrays(part) for name, part in value.items()}
    return value


def load_weights(model: nn.Module, loaded: object, source: str, key: str | None = None) -> list[str]:
    """Put the weights of a checkpoint into a model: every name and shape must fit, batch counters apart.

    They may also fit a direct child that holds all of the model's weights (a wrapper around a trained body): then they go there.

    Args:
        loaded: what `read_checkpoint` read.
        source: the file, for errors.
        key: see `choose_weights`.

    Returns:
        A sentence for each choice made.

    Raises:
        ClusterqError: nothing fits, several do, tensors that are no plain floats, or values that are not finite.
    """
    # A child that holds only part of the weights would leave the rest as they were drawn.
    children = [child for child in model.children() if set(child.parameters()) == set(model.parameters())]

    def complaint(state: Mapping[str, Tensor]) -> str:
        own = _complaint(model, state)
        return "" if any(not _complaint(child, state) for child in children) else own

    state, remarks = choose_weights(loaded, complaint, source, key)
    if _complaint(model, state):
        model = next(child for child in children if not _complaint(child, state))
    # Names and shapes fit by now. A small file may hold tensors of any shape, whose values must not be touched before.
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    own = {name: value for name, value in state.items() if wanted.get(name) == value.shape}
    for name, value in model.state_dict().items():
        odd = _oddity(own[name], value) if name in own else ""
        if odd:
            raise ClusterqError(
                f"{source} holds {odd} in {name}, expected plain floats; export the weights again.", setting="weights"
            )
    bad = [name for name, value in own.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        raise ClusterqError(
            f"{source} holds values that are not finite, in {bad[0]}; export the weights again.", setting="weights"
        )
    model.load_state_dict(own, strict=False)
    return remarks


def _oddity(given: Tensor, wanted: Tensor) -> str:
    """Say why a tensor of the right shape is no value of a trained network; empty where it may be one."""
    kind = str(given.dtype).removeprefix("torch.")
    if given.is_meta:
        return "no values"
    if given.layout is not torch.strided:
        return "a sparse tensor"
    # Those of a quantized network mean nothing without their scales.
    return f"{kind} values" if wanted.is_floating_point() and not given.is_floating_point() else ""


def _complaint(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Say why a state dict does not fit; empty when it fits."""
    expected = {name: value for name, value in model.state_dict().items() if not name.endswith(COUNTERS)}
    given = {name: value for name, value in state.items() if not name.endswith(COUNTERS)}
    misshapen = [
        f"{name} is {tuple(given[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in given and given[name].shape != value.shape
    ]
    parts = [
        _listed("missing", [name for name in expected if name not in given]),
        _listed("unexpected", [name for name in given if name not in expected]),
        _listed("misshapen", misshapen),
    ]
    return "; ".join(part for part in parts if part)


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - KEYS_SHOWN} more" if len(names) > KEYS_SHOWN else ""
    return f"{kind} {', '.join(names[:KEYS_SHOWN])}{more}"
