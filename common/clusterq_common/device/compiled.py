"""Training steps compiled with torch.compile.

The compiler fuses elementwise operations, and decides which tensors are kept for the gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import in_a_command, setting_name


def need_compiler(device: torch.device) -> None:
    """Compile two operations as a check, so that a missing compiler is reported at once and not at the first compiled step.

    Raises:
        ClusterqError: there is no working compiler for this device.
    """
    probe = torch.compile(lambda x: x.relu() + 1, dynamic=False)
    try:
        probe(torch.ones(64, device=device))
    except Exception as error:
        if not _of_a_compiler(error):
            raise
        raise ClusterqError(
            f"torch {torch.__version__} cannot compile here ({_reason(error)}), expected a working C++ compiler (on CUDA: Triton); "
            f"install one, or leave {in_a_command('the flag') or 'it'} out.",
            setting="compile",
        ) from error


class Compiled:
    """A network, compiled at its first call. It shares its parameters with the network, which may also be called uncompiled.

    Use batches of one size, because each new size is compiled again. Hooks that the network has by then are compiled, too. The
    gradient can be taken once for each call.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = torch.compile(network, dynamic=False)

    def __call__(self, *inputs: Any) -> Tensor:
        """Return the network's output.

        Raises:
            ClusterqError: torch cannot compile it.
        """
        try:
            output: Tensor = self.network(*inputs)
        except Exception as error:
            if not _of_a_compiler(error):
                raise
            restart = in_a_command(f", with {setting_name('overwrite')}")
            raise ClusterqError(
                f"torch {torch.__version__} cannot compile this network ({_reason(error)}), expected a network that torch.compile "
                f"knows; leave it out{restart}.",
                setting="compile",
            ) from error
        return output


def _of_a_compiler(error: Exception) -> bool:
    # It has no public name. Imported here, because the import takes as long as torch's own and only compiling needs it.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # The backend's own message is on the line below its name.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
