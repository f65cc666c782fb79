"""A network's training step as torch.compile makes it: elementwise work is fused, and what the gradient needs is chosen by the compiler."""

from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError


def need_compiler(device: torch.device) -> None:
    """Compile two operations now: a missing compiler is said in seconds, not after what comes before the first compiled step.

    Raises:
        ClusterqError: there is none that works for this device.
    """
    probe = torch.compile(lambda x: x.relu() + 1, dynamic=False)
    try:
        probe(torch.ones(64, device=device))
    except Exception as error:
        if not _of_a_compiler(error):
            raise
        raise ClusterqError(
            f"--compile: torch {torch.__version__} cannot compile here ({_reason(error)}), expected a working C++ compiler (on CUDA: Triton); "
            "install one, or leave the flag out."
        ) from error


class Compiled:
    """A network, compiled when it is first called. Parameters stay the network's own, so it may be called plainly in between.

    Give it batches of one size: each new one is compiled anew. Hooks that the network has by then are compiled with it. Its gradient can
    be taken once for each call.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = torch.compile(network, dynamic=False)

    def __call__(self, *inputs: Any) -> Tensor:
        """The network's output.

        Raises:
            ClusterqError: torch cannot compile it.
        """
        try:
            output: Tensor = self.network(*inputs)
        except Exception as error:
            if not _of_a_compiler(error):
                raise
            raise ClusterqError(
                f"--compile: torch {torch.__version__} cannot compile this network ({_reason(error)}), expected a network that torch.compile "
                "knows; leave it out, with --overwrite."
            ) from error
        return output


def _of_a_compiler(error: Exception) -> bool:
    # No public name. Imported here: it takes as long as torch itself, and without --compile nobody needs it.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # What a backend raised stands on the line below its name.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
