"""Networks with random weights and their steps, for benchmarks. Speed does not depend on the weights."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from plain import plain_student

from clusterq_common.device.compiled import Compiled
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.cuda_graph import cuda_recorder
from clusterq_common.device.setup import prepare_device, to_device, training_autocast
from clusterq_common.distill.objective import StudentObjective
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert, recompute_values
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher, load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_gen.bank.optimise import Optimiser
from clusterq_gen.config import EmitConfig, GenConfig
from clusterq_gen.presets import resolve
from clusterq_gen.training.loop import graphed_steps, train_step
from clusterq_gen.training.state import Training

Network = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Setup:
    """Network, batch and precision of a timed step.

    Attributes:
        arch: pytorchcv's name, or file.py:factory.
        batch_size: images in a batch.
        amp: auto, off or bf16, as for the programs.
        threads: CPU threads; torch's default when None.
        sizes: input_size, num_classes and so on, where they differ from the architecture's own.
        width: width of the generator; the preset's when None.
    """

    arch: str
    batch_size: int
    amp: str = "off"
    threads: int | None = None
    sizes: dict[str, object] = field(default_factory=dict)
    width: int | None = None

    @property
    def runtime(self) -> RuntimeConfig:
        """The corresponding settings of the programs."""
        return RuntimeConfig.validated({"threads": self.threads, "amp": self.amp})

    def load(self) -> Teacher:
        """Build the classifier with random weights, on the GPU where there is one."""
        config = TeacherConfig.validated({"arch": self.arch, "weights": "random", **self.sizes})
        return load_teacher(config, device=prepare_device(self.runtime))

    def start(self, method: str, train: dict[str, Any] | None = None) -> Training:
        """Start a generator's training with a method; `train` overrides its settings."""
        device = prepare_device(self.runtime)
        teacher = self.load()
        flags: dict[str, dict[str, Any]] = {
            "teacher": teacher.config.model_dump(),
            "method": {"method": method},
            "train": {"batch_size": self.batch_size, **(train or {})},
            "runtime": self.runtime.model_dump(),
            "generator": {} if self.width is None else {"width": self.width},
        }
        config: GenConfig = resolve(flags, "auto", imagenet_sized=teacher.spec.longer_side > 64)
        return Training.start(config, teacher, device)

    def warm_state(self, methods: list[str]) -> dict[str, Any]:
        """Return one run's state right after warm-up, shared by all methods.

        At 1000 classes of 224x224 the warm-up alone takes minutes on a CPU.
        """
        # With one image a class, all classes are seen in fewer batches. The timed steps have the settings' own number.
        single = replace(self, amp="off")
        classes = min(self.batch_size, self.load().spec.num_classes)
        runs = [single.start(method, {"classes_per_batch": classes}) for method in methods]
        run = next((run for run in runs if run.method.needs_centroids), runs[0])
        run.end_warmup(lambda _: None)
        run.step = run.warmup_steps + 1
        return run.state_dict()

    def training(self, method: str, warm: dict[str, Any], train: dict[str, Any] | None = None) -> Training:
        """Return a run right after warm-up, with a copy of that state."""
        run = self.start(method, train)
        state = copy.deepcopy(warm)
        run.load_state_dict(state if run.method.needs_centroids else {**state, "centroids": None})
        return run


class GeneratorStep:
    """A whole step of generator and student, taken by a call; with `graphs` it is recorded and replayed.

    `close` removes its hooks from the teacher.
    """

    def __init__(self, run: Training, *, graphs: bool = False) -> None:
        self.run, self._hooks = run, ExitStack()
        self.taps = self._hooks.enter_context(batchnorm_taps(run.teacher.model))
        self.stored = run.stored_statistics()
        recorder = cuda_recorder(run.device) if graphs else None
        self.graphs = graphed_steps(run, self.taps, self.stored, recorder) if recorder else None

    def __call__(self) -> None:
        train_step(self.run, self.taps, self.stored, self.graphs)
        self.run.step += 1

    def close(self) -> None:
        self._hooks.close()


def finetune_steps(setup: Setup, bits: str, *, compiled: bool = False) -> dict[str, Callable[[], None]]:
    """Return steps of float training, of distillation, and of distillation with plain fake-quantization; or also compiled."""
    device, teacher = prepare_device(setup.runtime), setup.load()
    images = torch.randn(setup.batch_size, *teacher.spec.shape, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(setup.batch_size, device=device) % teacher.spec.num_classes
    with torch.no_grad():
        logits = teacher.model(images).float()
    config = QuantConfig(bits=bits)
    student = convert(teacher.model, config, images[:1], lambda _: None).eval()
    calibrate(student, [images[:64]], config)
    recompute_values(student)
    network = copy.deepcopy(teacher.model).train().requires_grad_(True)
    objective = StudentObjective(1.0, 20.0, 20.0)

    def distilled(model: Network) -> torch.Tensor:
        return torch.stack(list(objective(model(images), logits, labels).values())).sum()

    def stepping(owner: torch.nn.Module, model: Network, loss: Callable[[Network], torch.Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(owner.parameters(), lr=1e-6, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with training_autocast(setup.runtime, device):
                value = loss(model)
            value.backward()
            optimizer.step()

        return step

    plain = plain_student(student)
    for model in (network, student, plain):
        to_device(model, device)

    def classified(model: Network) -> torch.Tensor:
        return F.cross_entropy(model(images), labels)

    steps = {
        "float training": stepping(network, network, classified),
        f"fine-tuning, {bits}": stepping(student, student, distilled),
        f"fine-tuning, {bits}, plain": stepping(plain, plain, distilled),
    }
    if compiled:
        steps["float training, compiled"] = stepping(network, Compiled(network), classified)
        steps[f"fine-tuning, {bits}, compiled"] = stepping(student, Compiled(student), distilled)
    return steps


def refinement_step(setup: Setup) -> Callable[[], object]:
    """Return a step of refinement on a batch of noise, with `quick`'s terms: BatchNorm statistics alone."""
    device, teacher = prepare_device(setup.runtime), setup.load()
    bank = EmitConfig(refine_steps=50).refinement
    assert bank is not None
    images = torch.randn(setup.batch_size, *teacher.spec.shape, device=device)
    steps = Optimiser.start(bank, setup.runtime, teacher, device).steps_for(images.shape, labelled=False)
    steps.begin(images, None)
    return lambda: steps.take_step(bank.bank_lr, None, None)


def network_products(setup: Setup, dtype: torch.dtype) -> Callable[[], None]:
    """Return the convolutions and linear layers of one forward pass and of its gradient with respect to the images, without anything else."""
    device, teacher = prepare_device(setup.runtime), setup.load()
    products: list[tuple[Network, torch.Tensor, torch.Tensor]] = []

    def record(module: torch.nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        layer = copy.deepcopy(module).to(dtype).requires_grad_(False)
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
            hooks.clear()
        inputs = given[0].detach().to(dtype).clone(memory_format=torch.preserve_format).requires_grad_()
        products.append((layer, inputs, torch.randn_like(output, dtype=dtype)))

    layers = [m for m in teacher.model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    images = torch.randn(setup.batch_size, *teacher.spec.shape, device=device)
    with torch.no_grad():
        teacher.model(images.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for layer, inputs, gradient in products:
            torch.autograd.grad(layer(inputs), inputs, gradient)

    return run


def float_networks(setup: Setup) -> Callable[[], None]:
    """Return a step of generator and teacher, and then of a float student on the same images: the minimum for any method."""
    run = setup.start("gdfq")
    student = copy.deepcopy(run.teacher.model).requires_grad_(True)
    to_device(student, run.device)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        run.draws.begin(run.step)
        latent = run.inputs()
        images = run.generator(latent.z, latent.classes)
        F.cross_entropy(run.teacher.model(images), latent.labels).backward()
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(student(images.detach()), latent.labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
