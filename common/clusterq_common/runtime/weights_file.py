"""Networks on disk: safetensors, written whole."""

from pathlib import Path

from safetensors.torch import save
from torch import nn

from clusterq_common.runtime.files import atomic_write


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a module's state dict as safetensors (atomically), in plain memory order on the CPU."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    atomic_write(path, save(state))
