"""A network's training step as torch.compile makes it: elementwise work is fused, and what the gradient needs is chosen by the compiler."""

import torch
from torch import Tensor, nn

# There is no public name for what its compilers raise.
from torch._dynamo.exc import TorchDynamoException

from clusterq_common.runtime.errors import ClusterqError


class Compiled:
    """A network, compiled when it is first called. Parameters stay the network's own, so it may be called plainly in between.

    Give it batches of one size: each new one is compiled anew.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = torch.compile(network, dynamic=False)

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output.

        Raises:
            ClusterqError: torch cannot compile it here.
        """
        try:
            output: Tensor = self.network(x)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise ClusterqError(
                f"--compile: torch {torch.__version__} cannot compile this student here ({reason}), expected a working C++ compiler (on CUDA: "
                "Triton) and a network that torch.compile knows; leave it out, with --overwrite."
            ) from error
        return output
