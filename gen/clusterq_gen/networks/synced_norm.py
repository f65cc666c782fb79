"""BatchNorm over the whole batch, also when it is divided among several processes."""

import torch
from torch import Tensor, nn

from clusterq_common.device.distributed import Ranks
from clusterq_common.device.reduce import mean_across
from clusterq_common.device.setup import at_least_float32


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that trains with the statistics of all processes' images. Each process holds equally many.

    torch's own SyncBatchNorm needs CUDA. The mean is computed first, then the variance around it, which is exact where
    |mean| >> std.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or Ranks.current().world == 1:
            return super().forward(x)
        values = at_least_float32(x)
        mean = mean_across(values.mean((0, 2, 3)))
        centred = values - mean.view(1, -1, 1, 1)
        var = mean_across(centred.square().mean((0, 2, 3)))
        self._remember(mean.detach(), var.detach(), x.numel() // x.shape[1] * Ranks.current().world)
        scale = torch.rsqrt(var + self.eps)
        if self.affine:
            scale = scale * self.weight
        out = centred * scale.view(1, -1, 1, 1)
        if self.affine:
            out = out + self.bias.view(1, -1, 1, 1)
        return out.to(x.dtype)

    def _remember(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Update the running statistics as `nn.BatchNorm2d` does, with the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), self.momentum)
