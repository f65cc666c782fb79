"""State of a generator training: its networks, its start and its checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clusterq_common import schedules
from clusterq_common.device.compiled import Compiled
from clusterq_common.device.distributed import Ranks
from clusterq_common.device.rates import held_rate, set_learning_rate
from clusterq_common.device.reduce import broadcast, gather_batch
from clusterq_common.device.setup import to_device, training_autocast
from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import info
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.convert import convert
from clusterq_common.run.checkpoint import load_optimizer
from clusterq_common.run.seeding import stream
from clusterq_common.taps import BatchNormTaps, ClassGroups, StoredStatistics, batchnorm_taps, stored_statistics
from clusterq_common.teacher.load import Teacher
from clusterq_gen.config import GenConfig, TrainConfig
from clusterq_gen.methods import build_method
from clusterq_gen.methods.method import Method
from clusterq_gen.networks.generator import Generator, build_generator
from clusterq_gen.training.centroids import Centroids, SemanticLayers
from clusterq_gen.training.latent import LatentBatch, batch_labels, classes_in_batch, noise
from clusterq_gen.training.mixture import classes_in_mixture, mixtures
from clusterq_gen.training.step_random import StepRandom

# Centroids start from as many passes over all classes as this number of images allows, between one and four. Ranges start from
# about half as many images, taken evenly from them.
START_IMAGES = 1024
MOST_START_ROUNDS = 4


def start_rounds(train: TrainConfig, num_classes: int) -> tuple[int, int]:
    """Return how often the start of the centroids goes through all classes, and the batches that each time takes."""
    steps_per_round = -(-num_classes // classes_in_batch(num_classes, train.batch_size, train.classes_per_batch))
    return min(MOST_START_ROUNDS, max(1, START_IMAGES // (steps_per_round * train.batch_size))), steps_per_round


@dataclass
class Training:
    """Networks, optimisers and centroids of one run. `student` and `centroids` exist after the warm-up only."""

    config: GenConfig
    teacher: Teacher
    device: torch.device
    method: Method
    generator: Generator
    optimizer: torch.optim.Optimizer
    draws: StepRandom
    student: nn.Module | None = None
    student_optimizer: torch.optim.Optimizer | None = None
    centroids: Centroids | None = None
    step: int = 0
    _compiled: dict[str, Compiled] = field(default_factory=dict)

    @classmethod
    def start(cls, config: GenConfig, teacher: Teacher, device: torch.device) -> "Training":
        """Start a new run. The generator has new weights, drawn from the seed.

        Raises:
            ClusterqError: the processes cannot share the batch evenly, or the method does not fit the teacher.
        """
        world = Ranks.current().world
        if config.train.batch_size % world:
            raise ClusterqError(
                f"{config.train.batch_size} images cannot be shared evenly by {world} processes, expected a multiple of "
                f"{world}; the batch is that of all processes together.",
                setting="batch_size",
            )
        if config.method.mixing:
            try:
                classes_in_mixture(teacher.spec.num_classes, config.method.mix_classes)
            except ValueError as error:
                raise ClusterqError(f"{error}; choose a smaller number.", setting="mix_classes") from error
        # Layers draw their initial weights from the global generator, which is seeded here and restored afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.runtime.seed, "generator").initial_seed())
            generator = build_generator(config.generator, teacher.spec)
        to_device(generator, device)
        graphs = config.train.cuda_graphs
        optimizer = torch.optim.Adam(
            generator.parameters(),
            lr=held_rate(config.train.lr, device, graphs=graphs),
            betas=(0.5, 0.999),
            fused=True,
            capturable=graphs and device.type == "cuda",
        )
        method = build_method(config.method, config.runtime.seed)
        return cls(config, teacher, device, method, generator, optimizer, StepRandom(device, kept=graphs))

    @property
    def total_steps(self) -> int:
        return self.config.train.epochs * self.config.train.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        return self.config.train.warmup_epochs * self.config.train.steps_per_epoch

    def autocast(self) -> torch.autocast:
        """Return the autocast context for forward passes in training."""
        return training_autocast(self.config.runtime, self.device, images=True)

    def network(self, name: Literal["generator", "teacher", "student"], *, plain: bool = False) -> Callable[..., Tensor]:
        """Return a network for a training step, compiled if the settings ask for it and `plain` is false."""
        network = self.teacher.model if name == "teacher" else getattr(self, name)
        if plain or not self.config.train.compile:
            return network
        if name not in self._compiled:
            self._compiled[name] = Compiled(network)
        return self._compiled[name]

    def inputs(self, *, mixed: bool = True) -> LatentBatch:
        """Return the generator's input for the step that `draws` has begun, on the device: this process's part of the batch.

        Args:
            mixed: whether images may mix classes, where the settings say so.
        """
        train, method, seed = self.config.train, self.config.method, self.config.runtime.seed
        classes = self.teacher.spec.num_classes
        per_batch = classes_in_batch(classes, train.batch_size, train.classes_per_batch)
        own = Ranks.current().share(train.batch_size)
        dtype = self.generator.to_map.weight.dtype

        # Several draws of a step need the labels, which are dealt once for all of them; kept draws go on using these functions.
        @lru_cache(maxsize=1)
        def whole(step: int) -> tuple[Tensor, ClassGroups]:
            return batch_labels(seed, step, batch_size=train.batch_size, per_batch=per_batch, num_classes=classes)

        def shares(step: int) -> Tensor:
            per_image = classes_in_mixture(classes, method.mix_classes)
            labels = whole(step)[0]
            return mixtures(seed, step, labels, probability=method.mixing, per_image=per_image, num_classes=classes)[own]

        def z(step: int) -> Tensor:
            return noise(seed, step, batch_size=train.batch_size, latent_size=self.config.generator.latent_size)[own]

        take = self.draws.take
        groups = ClassGroups(
            take("classes", lambda step: whole(step)[1].classes), take("row", lambda step: whole(step)[1].row[own])
        )
        mixture = take("mixture", shares, dtype) if mixed and method.mixing else None
        return LatentBatch(take("noise", z, dtype), take("labels", lambda step: whole(step)[0][own]), groups, mixture)

    def opponent_logits(self, images: Tensor) -> Tensor | None:
        """Return the in-loop student's logits (N, classes), with gradient to the images and none to its parameters.

        None during warm-up, and for methods that do not use them.
        """
        if self.student is None or not self.method.needs_student:
            return None
        self.student.requires_grad_(False)
        logits: Tensor = self.student(images)
        self.student.requires_grad_(True)
        return logits

    @property
    def rate(self) -> float:
        """Learning rate of the generator in the next step."""
        train = self.config.train
        return train.lr * schedules.factor(train.schedule, self.step // train.steps_per_epoch, train.epochs)

    def set_learning_rates(self, epoch: int) -> None:
        """Set both optimisers' learning rates for an epoch, by the schedule."""
        factor = schedules.factor(self.config.train.schedule, epoch, self.config.train.epochs)
        set_learning_rate(self.optimizer, self.config.train.lr * factor)
        if self.student_optimizer is not None:
            set_learning_rate(self.student_optimizer, self.config.train.student_lr * factor)

    def end_warmup(self, log: Any = info) -> None:
        """Create the in-loop student, calibrated on generated images, and the centroids, from the same images."""
        self.add_student(log)
        assert self.student is not None
        rounds, steps_per_round = start_rounds(self.config.train, self.teacher.spec.num_classes)
        keep_every = max(1, 2 * rounds * steps_per_round * self.config.train.batch_size // START_IMAGES)
        images = []
        with torch.no_grad(), batchnorm_taps(self.teacher.model) as taps:
            self.generator.eval()
            for number in range(rounds * steps_per_round):
                # Numbered after the last training step, so that no training step has the same batch.
                # Each image has a single class, as in the shards.
                self.draws.begin(self.total_steps + number)
                latent = self.inputs(mixed=False)
                batch = self.generator(latent.z, latent.labels)
                keep = latent.asked_for(self.teacher.model(batch).argmax(1))
                if self.method.needs_centroids:
                    self.add_centroids(taps)
                    assert self.centroids is not None
                    features = self.centroids.layers.statistics(taps, latent.groups, keep)
                    # Rates 1, 1/2, 1/3, ... make the mean over the rounds.
                    self.centroids.update(features, 1 / (1 + number // steps_per_round))
                if number % keep_every == 0:
                    images.append(gather_batch(batch).cpu())
            self.generator.train()
        calibrate(self.student, images, self.config.quant, seed=self.config.runtime.seed)
        broadcast(self.student)

    def add_student(self, log: Any, *, search: bool = True) -> None:
        """Create the in-loop student and its optimizer. It has yet to be calibrated; for `search` see `convert`."""
        spec = self.teacher.spec
        example = self.generator.to_map.weight.new_zeros(1, *spec.shape)
        # In eval mode BatchNorm keeps the teacher's running statistics, as GDFQ trains its student.
        self.student = convert(self.teacher.model, self.config.quant, example, log, search=search).eval()
        self.student_optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=held_rate(self.config.train.student_lr, self.device, graphs=self.config.train.cuda_graphs),
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-4,
            fused=True,
        )

    def add_centroids(self, taps: BatchNormTaps) -> None:
        """Create the centroids, if there are none, for the layers that the latest forward pass went through."""
        if self.centroids is None:
            method = self.config.method
            try:
                layers = SemanticLayers.choose(taps.moments, self.stored_statistics(), method.start_layer, method.fda_units)
            except ValueError as error:
                raise ClusterqError(f"{error}; choose a smaller number.", setting="start_layer") from error
            self.centroids = Centroids(self.teacher.spec.num_classes, layers)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, for a checkpoint."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "student": None if self.student is None else self.student.state_dict(),
            "student_optimizer": None if self.student_optimizer is None else self.student_optimizer.state_dict(),
            "centroids": None if self.centroids is None else self.centroids.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint of a run with the same settings."""
        self.generator.load_state_dict(state["generator"])
        load_optimizer(self.optimizer, state["optimizer"])
        if state["student"] is not None:
            self.add_student(lambda _: None)
            assert self.student is not None
            assert self.student_optimizer is not None
            self.student.load_state_dict(state["student"])
            load_optimizer(self.student_optimizer, state["student_optimizer"])
        if state["centroids"] is not None:
            spec = self.teacher.spec
            with torch.no_grad(), batchnorm_taps(self.teacher.model) as taps:
                self.teacher.model(torch.zeros(1, *spec.shape, device=self.device))
                self.add_centroids(taps)
            assert self.centroids is not None
            self.centroids.load_state_dict(state["centroids"])
        self.step = state["step"]

    def stored_statistics(self) -> dict[str, StoredStatistics]:
        """Return the teacher's running statistics by layer."""
        return stored_statistics(self.teacher.model)
