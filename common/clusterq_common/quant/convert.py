"""Conversion of a float model to a quantized student with the same module names."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.quant.around import GATES, FoundActivation, QuantSmooth, activations_around
from clusterq_common.quant.bits import FLOAT, Bits
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.grid import Grid
from clusterq_common.quant.layer_bits import bits_of, matches, refuse_unused_patterns
from clusterq_common.quant.modules import QuantActivation, QuantConv2d, QuantLinear, from_float, quantized_output
from clusterq_common.quant.ranges import weight_range
from clusterq_common.quant.share import LEAST_SHARE, NAMES_SHOWN, quantized_share
from clusterq_common.quant.structure import ACTIVATIONS, float_layers, quantizable_layers, residual_branches
from clusterq_common.quant.sums import Sums, sums_and_poolings
from clusterq_common.setting_names import setting_name

# Pixels have 8 bits; fewer would lose information.
IMAGE_BITS = 8
# No product of weights reads the output of a quantizer around an activation, so fewer bits would save nothing.
AROUND_BITS = 8
# Errors of a sum stay in all sums after it.
SUM_BITS = 8
# The attribute of a student that holds its settings.
_CONFIG = "clusterq_quant"


def convert(
    model: nn.Module,
    config: QuantConfig,
    example: Tensor,
    log: Callable[[str], None] | None = None,
    *,
    search: bool = True,
) -> nn.Module:
    """Return a quantized copy of `model`. The ranges of its weights are set; those of its activations are set by `calibrate`.

    The copy has the model's module names and the model's state-dict keys plus those of its quantizers; `model` itself is
    unchanged. Bits of 32/32 give a plain copy.

    Args:
        model: a float classifier.
        config: bits and conventions.
        example: (N, C, H, W) float32, any values, on any device. One forward pass on it determines the order of the layers.
        log: called with a summary of what was quantized, a line at a time.
        search: search the ranges of weights, as `config` says. Without, which takes less time, they are the largest weights: enough to
            see what is quantized, or to time it.

    Raises:
        ClusterqError: there is nothing to quantize, or an option does not fit this model.

    Examples:
        >>> import torch
        >>> import clusterq as cq
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)).eval()
        >>> student = cq.convert(net, cq.QuantConfig(bits="w3a3"), torch.zeros(1, 1, 8, 8))
        >>> [name for name, _ in student.named_modules() if name.endswith("quantizer")]
        ['0.weight_quantizer', '0.input_quantizer']
    """
    student = copy.deepcopy(model)
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    setattr(student, _CONFIG, config)
    first = next(student.parameters(), None)
    example = example if first is None else example.to(first.device)
    bits = config.parsed_bits
    if bits.weights == bits.activations == FLOAT and not config.layer_bits:
        if log is not None:
            log(f"{bits}: nothing is quantized")
        return student
    order = quantizable_layers(student, example)
    ends = {order[0], order[-1]}
    activations = _activations(student) if config.activation_sites == "relu" else []
    branches = residual_branches(model, example) if config.branch_outputs else []
    around = activations_around(model, example) if config.around_activations else {}
    sums = sums_and_poolings(model, order, example) if config.residual_sums else Sums([], {}, [])
    refuse_unused_patterns(config, [*order, *activations, *branches, *around, *sums.outputs])
    around = {
        name: one for name, one in around.items() if name not in activations and bits_of(name, config).activations != FLOAT
    }
    for name in order:
        bits_here = bits_of(name, config, end=name in ends)
        _quantize_layer(student, name, config, bits_here, is_first=name == order[0], search=search)
    _quantize_activations(student, activations, config)
    _quantize_branches(student, branches, config)
    _quantize_around(student, around, config)
    _quantize_sums(student, sums, config)
    if log is not None:
        for line in _summary(student, config, order, activations, branches, around):
            log(line)
        for line in _summary_of_sums(student, sums, config):
            log(line)
        log(_share(model, order, example))
    return student.to(example.device)


def quantized_as(student: nn.Module) -> QuantConfig:
    """Return the settings with which `convert` made a student.

    Raises:
        ClusterqError: the student was not made by `convert`.
    """
    config = getattr(student, _CONFIG, None)
    if not isinstance(config, QuantConfig):
        raise ClusterqError(
            f"a {type(student).__name__} was given, expected a student made by convert; convert the model first."
        )
    return config


def quantizers(student: nn.Module) -> dict[str, FakeQuantizer]:
    """Return every fake-quantizer of a student by name, e.g. `features.init_block.conv.input_quantizer`."""
    return {name: module for name, module in student.named_modules() if isinstance(module, FakeQuantizer)}


def activation_sites(student: nn.Module) -> dict[str, FakeQuantizer]:
    """Return the quantizers of activations by name, in module order."""
    return {name: q for name, q in quantizers(student).items() if not name.endswith("weight_quantizer")}


def settle_scales(student: nn.Module, log: Callable[[str], None]) -> None:
    """Set scales that training has left below the lower bound to it, and log their number. Results stay the same."""
    if below := sum(quantizer.settle() for quantizer in quantizers(student).values()):
        log(f"{below} scales of the student fell to 0 in training; what they quantize has become constant.")


def recompute_values(student: nn.Module) -> None:
    """Make quantizers recompute their values for gradients instead of keeping them: the same numbers, less memory, more time."""
    for quantizer in quantizers(student).values():
        quantizer.recompute = True


def _quantize_layer(student: nn.Module, name: str, config: QuantConfig, bits: Bits, *, is_first: bool, search: bool) -> None:
    layer = student.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight_bits = bits.weights
    input_bits = FLOAT if config.activation_sites == "relu" else bits.activations
    if is_first and input_bits != FLOAT:
        input_bits = IMAGE_BITS
    weight_quantizer = None
    if weight_bits != FLOAT:
        ranges = config if search else config.model_copy(update={"range": "minmax"})
        grid, low, high = weight_range(layer.weight, weight_bits, ranges)
        weight_quantizer = FakeQuantizer(
            grid,
            channels=low.numel() if config.weight_granularity == "channel" else None,
            learned=config.learns_weight_steps,
        )
        weight_quantizer.to(layer.weight.device).set_range(grid, low, high)
    _replace(
        student,
        name,
        from_float(
            layer,
            QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear,
            weight_quantizer=weight_quantizer,
            input_quantizer=None if input_bits == FLOAT else _activation_quantizer(input_bits, config),
            output_quantizer=None,
        ),
    )


def _activations(student: nn.Module) -> list[str]:
    names = [name for name, module in student.named_modules() if isinstance(module, ACTIVATIONS)]
    if not names:
        raise ClusterqError(
            f"{setting_name('activation_sites', 'relu')}: the model has no ReLU or ReLU6 module, so no activation would be quantized; use "
            f"{setting_name('activation_sites', 'all')}."
        )
    return names


def _quantize_activations(student: nn.Module, names: list[str], config: QuantConfig) -> None:
    for name in names:
        bits = bits_of(name, config).activations
        if bits != FLOAT:
            _replace(student, name, QuantActivation(student.get_submodule(name), _activation_quantizer(bits, config)))


def _quantize_branches(student: nn.Module, names: list[str], config: QuantConfig) -> None:
    for name in names:
        bits = bits_of(name, config).activations
        if bits != FLOAT:
            _quantize_output(student, name, _activation_quantizer(bits, config))


def _quantize_output(student: nn.Module, name: str, quantizer: FakeQuantizer) -> None:
    module = student.get_submodule(name)
    if isinstance(module, QuantConv2d | QuantLinear | QuantActivation):
        module.output_quantizer = quantizer
    else:
        _replace(student, name, from_float(module, quantized_output(type(module)), output_quantizer=quantizer))


def _quantize_sums(student: nn.Module, sums: Sums, config: QuantConfig) -> None:
    for name in sums.outputs:
        # Branches and activation functions may have theirs.
        if bits_of(name, config).activations != FLOAT and _output_quantizer(student, name) is None:
            _quantize_output(student, name, _activation_quantizer(SUM_BITS, config))
    for name, producers in sums.inputs.items():
        layer = student.get_submodule(name)
        assert isinstance(layer, QuantConv2d | QuantLinear)
        own = layer.input_quantizer
        given = [
            producer
            for producer in producers
            if (quantizer := _output_quantizer(student, producer)) and own and quantizer.bits == own.bits
        ]
        if given:
            # Two roundings to as many bits lose more than one, and cost runtimes a conversion.
            layer.input_quantizer, layer.reads = None, f"{given[0]}.output_quantizer"


def _output_quantizer(student: nn.Module, name: str) -> FakeQuantizer | None:
    quantizer = getattr(student.get_submodule(name), "output_quantizer", None)
    return quantizer if isinstance(quantizer, FakeQuantizer) else None


def _quantize_around(student: nn.Module, around: Mapping[str, FoundActivation], config: QuantConfig) -> None:
    def quantizer(*, learned: bool = True) -> FakeQuantizer:
        return _activation_quantizer(AROUND_BITS, config, learned=learned)

    for name, (kind, read) in around.items():
        output = quantizer() if read else None
        if kind == "relu":
            _replace(student, name, QuantActivation(student.get_submodule(name), output))
            continue
        # A hard sigmoid ends at exactly 1. A learned scale might reach beyond.
        gate = quantizer(learned=kind != "hardswish") if kind in GATES else None
        _replace(student, name, QuantSmooth(kind, quantizer(), gate, output))


def _activation_quantizer(bits: int, config: QuantConfig, *, learned: bool = True) -> FakeQuantizer:
    # Calibration chooses the sign; until then the widest grid is used.
    return FakeQuantizer(Grid.choose(bits, config.quantizer, minimum=-1.0), learned=learned and config.range == "lsq")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    module.train(model.training)
    setattr(model.get_submodule(parent), child, module)


def _summary(
    student: nn.Module,
    config: QuantConfig,
    order: list[str],
    activations: list[str],
    branches: list[str],
    around: Mapping[str, FoundActivation],
) -> list[str]:
    def width(layer: nn.Module, kind: str) -> str:
        quantizer = getattr(layer, kind)
        return "float" if quantizer is None else f"{quantizer.bits}"

    layers = [(name, student.get_submodule(name)) for name in order]
    lines = [
        f"quantized {len(order)} layers to {config.bits} ({config.quantizer}, weights per {config.weight_granularity}, "
        f"range {config.range}, activations at {config.activation_sites}); first/last at "
        f"{config.first_last_bits or 'the same bits'}"
    ]
    named = {name for name in order if any(matches(name, pattern) for pattern, _ in config.layer_rules)}
    special = [(name, layer) for name, layer in layers if name in {order[0], order[-1]} | named]
    lines += [
        f"  {name}: weights {width(layer, 'weight_quantizer')}, input {width(layer, 'input_quantizer')} bits"
        for name, layer in special
    ]
    if activations:
        lines.append(f"  {len(activations)} ReLU outputs at {config.parsed_bits.activations} bits")
    if branches:
        lines.append(f"  {len(branches)} residual-branch outputs at {config.parsed_bits.activations} bits")
    elif config.branch_outputs:
        lines.append("  no residual-branch outputs: no BatchNorm or convolution feeds an addition directly")
    if around:
        kinds = Counter(site.kind for site in around.values())
        lines.append(
            f"  around activations at {AROUND_BITS} bits: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"
        )
    elif config.around_activations:
        lines.append("  around activations: no SiLU, hard swish or sigmoid module, and no ReLU that a product or mean reads")
    # QuantConv2d and QuantLinear have a forward of their own, so they are listed here too.
    left = [entry for entry in float_layers(student) if "(Quant" not in entry]
    if left:
        lines.append(f"  left in float: {', '.join(left)}")
    return lines


def _summary_of_sums(student: nn.Module, sums: Sums, config: QuantConfig) -> list[str]:
    if not config.residual_sums:
        return []
    if not sums.outputs and not sums.left:
        return ["  no residual sums: no addition of two activations, and no max pooling"]
    # The other outputs are those of branches, with the bits of the line on these.
    quantized = [quantizer for name in sums.outputs if (quantizer := _output_quantizer(student, name)) is not None]
    outputs = sum(quantizer.bits == SUM_BITS for quantizer in quantized)
    shared = sum(bool(student.get_submodule(name).reads) for name in sums.inputs)
    lines = [
        f"  residual sums and what they and max poolings read: {outputs} outputs at {SUM_BITS} bits, which {shared} layers share"
    ]
    if sums.left:
        lines.append(
            f"  left in float: {len(sums.left)} of these that no module returns which runs once, the first in {sums.left[0] or 'the network itself'}"
        )
    return lines


def _share(model: nn.Module, order: list[str], example: Tensor) -> str:
    share, left = quantized_share(model, order, example)
    line = f"  {100 * share:.1f} % of multiply-adds are quantized"
    if share < LEAST_SHARE:
        more = f" and {len(left) - NAMES_SHOWN} more" if len(left) > NAMES_SHOWN else ""
        line += f": a student in float to a large part; left out: {', '.join(left[:NAMES_SHOWN])}{more}"
    return line


def parameters_by_kind(student: nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Return the student's trainable parameters as `(weights, learned quantizer scales)`, which are trained differently."""
    scales = [quantizer.scale for quantizer in quantizers(student).values() if isinstance(quantizer.scale, nn.Parameter)]
    known = {id(scale) for scale in scales}
    return [p for p in student.parameters() if id(p) not in known and p.requires_grad], scales
