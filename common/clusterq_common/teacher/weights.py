"""A teacher's weights: from pytorchcv's store, or from a file."""

import contextlib
import os
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.files import home_folder
from clusterq_common.progress.console import remarks

# As an argument of --weights: keep the fresh weights. For trials of speed and memory.
RANDOM = "random"
WRAPPERS = ("state_dict", "model_state_dict", "model")
KEYS_SHOWN = 3
COUNTERS = "num_batches_tracked"


def weights_cache() -> Path:
    """Where pytorchcv's downloads are kept: $TORCH_HOME/models, or ~/.torch/models as pytorchcv itself has it."""
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
        raise ClusterqError(f"--weights is missing: pytorchcv publishes no weights for {arch}; pass --weights FILE.")
    try:
        # pytorchcv prints its progress; stdout is for results.
        with contextlib.redirect_stdout(remarks()):
            return Path(model_store.get_model_file(name, local_model_store_dir_path=str(weights_cache())))
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterqError(
            f"--weights is missing, and pytorchcv's weights of {arch} could not be downloaded ({type(error).__name__}); pass a "
            f"file with --weights, or put the download into {weights_cache()}."
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors or from a PyTorch file, read without running any code in it.

    A wrapper (`{"state_dict": ...}`) and a `module.` prefix on all names are taken off.

    Raises:
        ClusterqError: missing, unreadable, or no state dict.
    """
    if not path.is_file():
        raise ClusterqError(f"--weights: {path} does not exist, expected a .safetensors file or a PyTorch state dict.")
    _refuse_packed(path)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ClusterqError(f"--weights: {path} is no readable safetensors file ({error}); export it again.") from error
    except Exception as error:  # torch.load raises a dozen kinds for a broken or unsafe file
        raise ClusterqError(
            f"--weights: {path} is no plain state dict ({type(error).__name__}); save it with torch.save(model.state_dict(), ...)."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    ):
        raise ClusterqError(
            f"--weights: {path} holds {type(state).__name__}, expected a state dict of tensors; export it again."
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Put a state dict into a model: every name and shape must fit, batch counters apart.

    A file may also fit one direct child of the model and not the model itself (a user's wrapper around a trained body):
    then it goes there.

    Raises:
        ClusterqError: missing, unexpected or misshapen names (the first few are shown), or values that are not finite.
    """
    # Names and shapes first: a small file may hold tensors of any shape, whose values must not be touched before.
    complaint = _complaint(model, state)
    if complaint:
        fitting = [
            child for child in model.children() if any(True for _ in child.parameters()) and not _complaint(child, state)
        ]
        if len(fitting) != 1:
            raise ClusterqError(f"--weights: {source} does not fit the architecture: {complaint}; check --arch and the file.")
        model = fitting[0]
    # Batch counters are taken along where they are such.
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    own = {name: value for name, value in state.items() if wanted.get(name) == value.shape}
    bad = [name for name, value in own.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if bad:
        raise ClusterqError(f"--weights: {source} holds values that are not finite, in {bad[0]}; export the weights again.")
    model.load_state_dict(own, strict=False)


def _refuse_packed(path: Path) -> None:
    """PyTorch stores tensors as they are. Packed ones would unfold to any size while they are read."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return  # torch says what is wrong with it
    if packed:
        raise ClusterqError(
            f"--weights: {path} is a packed archive, expected a plain state dict; save it with torch.save(model.state_dict(), ...)."
        )


def _complaint(model: nn.Module, state: dict[str, Tensor]) -> str:
    """What keeps a state dict from fitting; empty when it fits."""
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
