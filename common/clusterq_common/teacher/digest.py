"""A name for weights: the digest that identifies a teacher everywhere."""

import hashlib

import torch
from torch import nn


def weights_digest(model: nn.Module) -> str:
    """`sha256:<hex>` over the model's state: each tensor's name, dtype, shape and little-endian bytes, by sorted name.

    BatchNorm's batch counter is left out: it does not change what the model computes, and some files do not have it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{values.dtype}|{tuple(values.shape)}|".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
