"""Randomness: every draw comes from a stream named by the seed and a key, so that resuming needs no stored state."""

import hashlib

import torch


def stream(seed: int, *key: int | str) -> torch.Generator:
    """Return a CPU generator for one purpose, e.g. `stream(seed, "noise", step)`.

    The same seed and key give the same numbers on every machine, whatever else was drawn before; drawing on the CPU keeps
    them the same for every device.
    """
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
