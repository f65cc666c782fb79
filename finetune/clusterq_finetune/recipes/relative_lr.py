"""Update sizes relative to the parameters, so that one learning rate suits layers and networks of any scale."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clusterq_common.quant.fake_quantizer import FakeQuantizer


class RelativeSteps:
    """Scaling of an optimizer's updates by the size of the parameter: a learning rate of 0.01 then means one per cent.

    Adam moves each number by about the learning rate, whatever its size. That is a hundredth of one layer's weights and a
    thousandth of another's. It also activates dead channels (weights zero, running variance 1e-30), whose BatchNorm multiplies
    spurious values by 1 / sqrt(eps). Adafactor (Shazeer and Stern, 2018, section 8) scales by the root mean square of a whole
    tensor; here it is that of each output channel, at the start of the training.

    - weights of convolutions and linear layers: root mean square of the output channel;
    - BatchNorm's weight: that of the vector; its bias, which is in the same unit: likewise, of the weight;
    - biases of convolutions and linear layers: root mean square of the channel's weights times sqrt(fan-in);
    - quantizer steps: their own value.
    """

    def __init__(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        sizes = {id(parameter): size for parameter, size in _sizes(student)}
        self.parameters = [p for group in optimizer.param_groups for p in group["params"] if id(p) in sizes]
        self.sizes = [sizes[id(p)] for p in self.parameters]
        self.before: list[Tensor] = []
        optimizer.register_step_pre_hook(self._remember)
        optimizer.register_step_post_hook(self._rescale)

    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        self.before = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def _rescale(self, *_: Any) -> None:
        for parameter, before, size in zip(self.parameters, self.before, self.sizes, strict=True):
            parameter.sub_(before).mul_(size).add_(before)


def _sizes(student: nn.Module) -> list[tuple[Tensor, Tensor]]:
    sizes: list[tuple[Tensor, Tensor]] = []
    for module in student.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            rows = module.weight.detach().flatten(1)
            size = rows.square().mean(1).sqrt()
            sizes.append((module.weight, size.view(-1, *[1] * (module.weight.dim() - 1))))
            if module.bias is not None:
                sizes.append((module.bias, size * rows.shape[1] ** 0.5))
        elif isinstance(module, _BatchNorm) and module.affine:
            size = module.weight.detach().square().mean().sqrt()
            sizes += [(module.weight, size), (module.bias, size)]
        elif isinstance(module, FakeQuantizer) and isinstance(module.scale, nn.Parameter):
            sizes.append((module.scale, module.scale.detach().clone()))
    return sizes
