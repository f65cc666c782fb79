"""Checkpoints and weights on disk: one file, written whole, read without pickle."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from clusterq_common.archives.zip_directory import directory_size
from clusterq_common.device.rates import set_group_rate
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_file, atomic_write, make_folder
from clusterq_common.setting_names import setting_name

# Largest directory of an archive, in bytes, because zipfile makes an object of each entry. 80,000 tensors fit.
LARGEST_DIRECTORY = 1 << 23


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them (atomically)."""
    make_folder(path.parent)
    with atomic_file(path) as file:
        torch.save(state, file)


def archive_members(path: Path) -> list[zipfile.ZipInfo]:
    """Return the members of a PyTorch file; none if zipfile cannot read it, since torch then reports the error.

    Raises:
        ClusterqError: it has far more than any network has tensors.
    """
    if not zipfile.is_zipfile(path):
        return []
    try:
        if directory_size(path) > LARGEST_DIRECTORY:
            raise ClusterqError(
                f"{path} is an archive of tens of thousands of members, expected one a tensor; save the weights again."
            )
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    # zipfile raises NotImplementedError for an archive packed in a way that it does not know, ValueError for places before its beginning.
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return []


def is_packed(members: list[zipfile.ZipInfo]) -> bool:
    """Return whether a member is compressed. PyTorch does not compress, and such a member could expand to any size."""
    return any(member.compress_type != zipfile.ZIP_STORED for member in members)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, with `weights_only`.

    Raises:
        ClusterqError: the file is missing or not a checkpoint.
    """
    try:
        if is_packed(archive_members(path)):
            raise ValueError("a packed archive")
        state = torch.load(path, map_location=device, weights_only=True)
    except ClusterqError:
        raise
    except FileNotFoundError as error:
        raise ClusterqError(
            f"{path} does not exist, so the run cannot be resumed; use {setting_name('overwrite')} to start anew."
        ) from error
    except Exception as error:  # torch.load raises a dozen kinds for a broken file
        raise ClusterqError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); use {setting_name('overwrite')} to start the run anew."
        ) from error
    if not isinstance(state, dict):
        raise ClusterqError(
            f"{path} holds {type(state).__name__}, expected a checkpoint; use {setting_name('overwrite')} to start anew."
        )
    return state


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turn errors of loading a state that `load_checkpoint` read from `path` into one sentence.

    Raises:
        ClusterqError: the state lacks something, or belongs to a run of another kind or shape.
    """
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ClusterqError(
            f"{path} is no checkpoint of this run ({type(error).__name__}); use {setting_name('overwrite')} to start the run anew."
        ) from error


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's saved state, but keep how this one runs, such as with CUDA graphs."""
    own: list[dict[str, Any]] = [
        {name: group[name] for name in ("capturable", "fused", "lr") if name in group} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        rate = float(group["lr"])
        group.update(kept)
        set_group_rate(group, rate)


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a module's state dict as safetensors (atomically), in plain memory order on the CPU."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    atomic_write(path, save(state))
