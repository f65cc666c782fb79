"""Stage "steps": time of training steps on this device, beside its ceilings and plainly written steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from interleaved import ratio
from packed import Pack
from plain import PlainTraining
from record import Record
from setups import GeneratorStep, Setup, finetune_steps
from timing import (
    StepTime,
    device_time,
    memory_ceiling,
    operations,
    product_ceiling,
    time_step,
    wait,
)

from clusterq_common.device.cuda_graph import cuda_recorder
from clusterq_common.device.setup import prepare_device, to_device
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert
from clusterq_common.quant.structure import quantizable_layers
from clusterq_finetune.config import RECIPES, RecipeConfig
from clusterq_finetune.recipes.block_data import BlockData
from clusterq_finetune.recipes.block_steps import reconstruct_block
from clusterq_finetune.recipes.blocks import find_blocks
from clusterq_gen.bank.optimise import Optimiser
from clusterq_gen.config import EmitConfig

# Most important first, in case the time is short.
CASES = (Setup("resnet20_cifar10", 200, "auto"), Setup("resnet18", 16, "auto"), Setup("mobilenetv2_w1", 16, "auto"))
LARGE_BATCH = Setup("resnet18", 128, "auto")
REFINED = Setup("mobilenet_wd4", 100, "auto")
# A rehearsal reduces the batch, and in place of 224x224 the images, the generator, the number of classes and the network's width.
SMALL_SIZES: dict[str, object] = {"num_classes": 8, "mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "input_size": 32}
NARROW = {"mobilenetv2_w1": "mobilenetv2_wd4"}
METHODS = ("clusterq", "gdfq")
SHOWN_OPERATORS = 12


def run(record: Record, pack: Pack, work: Path) -> None:
    """Measure the ceilings, then each network's steps: eager, replayed, compiled, plainly written; finally those of fine-tuning."""
    device = prepare_device(CASES[0].runtime)
    ceilings = _ceilings(record, device)
    # One network at 224x224 is enough for a rehearsal.
    for number, setup in enumerate((CASES[0], CASES[2]) if record.rehearsal else (*CASES, LARGE_BATCH)):
        own = _small(setup) if record.rehearsal else setup
        methods = METHODS if number < (1 if record.rehearsal else 2) else METHODS[:1]
        generator = partial(_generator, record, own, methods, _name(setup), ceilings, device)
        record.part(_name(setup), generator, needs=12)
        if number == 0:
            record.part("fine-tuning steps", partial(_finetuning, record, own, device), needs=6)
            record.part("reconstruction steps", partial(_reconstruction, record, own, device), needs=6)
            record.part("refinement steps", partial(_refinement, record, own, device), needs=6)
    refined = replace(REFINED, batch_size=4, sizes=SMALL_SIZES) if record.rehearsal else REFINED
    record.part("refinement steps, 224x224", partial(_refinement, record, refined, device), needs=8)
    # Compiling takes longer than a rehearsal, and has its own tests.
    for case in () if record.rehearsal else CASES[:2]:
        record.part(f"{_name(case)}, compiled", partial(_compiled, record, case, device), needs=30)


def _small(setup: Setup) -> Setup:
    if setup == CASES[0]:
        return replace(setup, batch_size=8, width=8)
    return replace(setup, arch=NARROW[setup.arch], batch_size=2, sizes=SMALL_SIZES, width=8)


def _name(setup: Setup) -> str:
    return f"{setup.arch}, batch {setup.batch_size}"


def _ceilings(record: Record, device: torch.device) -> dict[torch.dtype, float]:
    found: dict[torch.dtype, float] = {}

    def measure() -> None:
        for dtype in (torch.bfloat16, torch.float32):
            found[dtype] = product_ceiling(device, dtype)
            record.add(f"matrix product, {str(dtype).removeprefix('torch.')}", found[dtype] / 1e12, "TFLOP/s")
        record.add("copy on the device", memory_ceiling(device) / 1e12, "TB/s", "bytes read and written")

    record.part("ceilings", measure)
    return found


def _generator(
    record: Record, setup: Setup, methods: tuple[str, ...], name: str, ceilings: dict[torch.dtype, float], device: torch.device
) -> None:
    """Time a whole step of generator and student after warm-up."""
    cuda, images = device.type == "cuda", setup.batch_size
    warm = setup.warm_state(list(methods))
    clusterq: StepTime | None = None
    for method in methods:
        for graphs in (False, True) if cuda else (False,):
            # Steps with gradient norms differ, so none is timed.
            step = GeneratorStep(
                setup.training(method, warm, {"cuda_graphs": graphs, "gradient_norm_every": 10**6}), graphs=graphs
            )
            cost = time_step(step, device, seconds=_slice(record), together=_together(record))
            step.close()
            _add(record, f"{name}, {method}{', graphs' if graphs else ''}", cost, images)
            if method == "clusterq" and (clusterq is None or graphs):
                clusterq = cost
    assert clusterq is not None
    step = GeneratorStep(setup.training("clusterq", warm, {"gradient_norm_every": 10**6}))
    step()
    flop = operations(step)
    _where(record, f"{name}, clusterq", step, device)
    step.close()
    ceiling = ceilings.get(torch.bfloat16 if cuda else torch.float32)
    if ceiling:
        reached = flop / (clusterq.milliseconds / 1e3) / ceiling
        record.add(f"{name}, clusterq: share of the product ceiling", 100 * reached, "%", f"{flop / 1e9:.0f} GFLOP a step")
    plain_setup = replace(setup, amp="off")
    ours = GeneratorStep(plain_setup.training("clusterq", warm, {"gradient_norm_every": 10**6}))
    plain = PlainTraining(plain_setup.training("clusterq", warm))
    seconds = {"ours": [], "plain": []}
    for _ in range(1 if record.rehearsal else 2):
        for kind, action in (("ours", ours), ("plain", plain.step)):
            seconds[kind].append(
                time_step(action, device, seconds=_slice(record) / 2, together=_together(record, 3)).milliseconds
            )
    ours.close()
    record.add(
        f"{name}, plainly written step over ours", ratio(seconds["plain"], seconds["ours"]), "x", "both in float32, no graphs"
    )


def _where(record: Record, name: str, step: Callable[[], object], device: torch.device) -> None:
    """Record how the device's time in a step is distributed."""
    found = device_time(step, device, steps=1 if record.rehearsal else 3)
    if device.type == "cuda":
        record.add(f"{name}: kernels alone", found.milliseconds, "ms", f"{found.kernels} launched in a step")
    record.add(f"{name}: convolutions and matrix products", 100 * found.products, "% of device time")
    most = list(found.shares.items())[:SHOWN_OPERATORS]
    record.add(f"{name}: largest operators", ", ".join(f"{op.removeprefix('aten::')} {100 * part:.0f} %" for op, part in most))


def _refinement(record: Record, setup: Setup, device: torch.device) -> None:
    """Time a refinement step, eager and replayed: a batch of images is optimised towards the stored statistics."""
    teacher = setup.load()
    bank = EmitConfig(refine_steps=50, refine_class_weight=1.0).refinement
    assert bank is not None
    spec = teacher.spec
    start = torch.randn(setup.batch_size, *spec.shape, device=device)
    labels = torch.arange(setup.batch_size, device=device) % spec.num_classes
    for graphs in (False, True) if device.type == "cuda" else (False,):
        optimiser = Optimiser.start(bank, setup.runtime, teacher, device, cuda_recorder(device) if graphs else None)
        steps = optimiser.steps_for(start.shape, labelled=True)
        steps.begin(start, labels)
        step = partial(steps.take_step, 0.01, None, None)
        name = f"{_name(setup)}, refinement{', graphs' if graphs else ''}"
        _add(record, name, time_step(step, device, seconds=_slice(record), together=_together(record)), setup.batch_size)
        if not graphs:
            _where(record, name, step, device)


def _finetuning(record: Record, setup: Setup, device: torch.device) -> None:
    """Time a distillation step beside a float training step, both at the same precision."""
    times = {
        name: time_step(step, device, seconds=_slice(record), together=_together(record))
        for name, step in finetune_steps(setup, "w4a4").items()
    }
    for name, cost in times.items():
        _add(record, f"{_name(setup)}, {name}", cost, setup.batch_size)
        record.add(f"{_name(setup)}, {name} over float training", cost.milliseconds / times["float training"].milliseconds, "x")


def _reconstruction(record: Record, setup: Setup, device: torch.device) -> None:
    """Time a reconstruction step of one residual unit, with and without graphs, beside float training of the whole network."""
    images = RecipeConfig().reconstruct_batch_size
    whole = finetune_steps(replace(setup, batch_size=images), "w4a4")["float training"]
    training = time_step(whole, device, seconds=_slice(record), together=_together(record)).milliseconds
    for graphs in (False, True) if device.type == "cuda" else (False,):
        with _block_steps(setup, device, graphs=graphs) as step:
            cost = time_step(step, device, seconds=_slice(record), together=_together(record))
        name = f"{setup.arch}, one unit's reconstruction{', graphs' if graphs else ''}"
        _add(record, name, cost, images)
        record.add(f"{name} over float training", cost.milliseconds / training, "x", f"of the whole network, batch {images}")


@contextmanager
def _block_steps(setup: Setup, device: torch.device, *, graphs: bool) -> Iterator[Callable[[], object]]:
    teacher = setup.load()
    spec = teacher.spec
    pixels = torch.randint(0, 256, (64, *spec.shape), dtype=torch.uint8)
    example = torch.zeros(1, *spec.shape, device=device)
    config = QuantConfig(bits="w4a4")
    student = convert(teacher.model, config, example, lambda _: None).eval()
    calibrate(student, [torch.randn(16, *spec.shape, device=device)], config)
    to_device(student, device)
    blocks, _ = find_blocks(teacher.model, quantizable_layers(teacher.model, example), example, "block")
    block = blocks[len(blocks) // 2]
    data = BlockData(teacher.model, student, block, pixels, spec, device, 1e9)
    recipe = RecipeConfig.validated({**RECIPES["fast"], "reconstruct_steps": 5000})
    steps = reconstruct_block(block.of(student), data, recipe, 0, 0, cuda_recorder(device) if graphs else None)
    try:
        yield lambda: next(steps)
    finally:
        steps.close()


def _compiled(record: Record, setup: Setup, device: torch.device) -> None:
    """Time compiled networks, on a GPU with a replayed step: the first step, and later ones."""
    graphs = device.type == "cuda"
    flags = {"gradient_norm_every": 10**6, "compile": True, "cuda_graphs": graphs}
    step = GeneratorStep(setup.training("clusterq", setup.warm_state(["clusterq"]), flags), graphs=graphs)
    name = f"{_name(setup)}, clusterq, compiled{', graphs' if graphs else ''}"
    begin = time.monotonic()
    step()
    wait(device)
    record.add(f"{name}: first step", time.monotonic() - begin, "s")
    _add(record, name, time_step(step, device, seconds=_slice(record)), setup.batch_size)
    step.close()


def _add(record: Record, name: str, cost: StepTime, images: int) -> None:
    record.add(f"{name}: a step", cost.milliseconds, "ms", f"slowest group {cost.spread:.2f} x the fastest")
    record.add(f"{name}: images", images / (cost.milliseconds / 1e3), "images/s")
    if cost.peak_mb:
        record.add(f"{name}: peak memory", cost.peak_mb, "MiB")


def _slice(record: Record) -> float:
    """Return the seconds for one timing."""
    return 0.0 if record.rehearsal else max(0.3, record.seconds / 100)


def _together(record: Record, steps: int = 10) -> int:
    return 1 if record.rehearsal else steps
