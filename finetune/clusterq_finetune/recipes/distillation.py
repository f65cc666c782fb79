"""State and training step of a distillation."""

from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.device.compiled import Compiled
from clusterq_common.device.cuda_graph import GraphedStep, Recorder, StaticInputs
from clusterq_common.device.distributed import Ranks
from clusterq_common.device.rates import set_learning_rate
from clusterq_common.device.reduce import average_gradients
from clusterq_common.device.setup import training_autocast
from clusterq_common.distill.objective import StudentObjective
from clusterq_common.quant.convert import recompute_values
from clusterq_common.run.checkpoint import load_optimizer
from clusterq_common.run.seeding import stream
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.augment import augment
from clusterq_finetune.data.network_input import to_network_input
from clusterq_finetune.data.shard_batches import ShardBatch
from clusterq_finetune.recipes.ema import WeightEma
from clusterq_finetune.recipes.features import feature_distance, feature_modules, outputs_of
from clusterq_finetune.recipes.heldout import Selection
from clusterq_finetune.recipes.optimizer import build_optimizer
from clusterq_finetune.recipes.relative_lr import RelativeSteps

# Shares of a batch's images: student and teacher predict the same class; each predicts the label.
SHARES = ("student/agreement", "student/accuracy", "teacher/accuracy")


class Distillation:
    """State and training step of a distillation. A checkpoint holds its state.

    BatchNorm stays in eval mode, because synthetic images do not have the statistics that the teacher's layers were trained with.
    With a `recorder`, steps on full batches are replayed as a graph.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        config: FinetuneConfig,
        device: torch.device,
        *,
        stored_logits: bool,
        recorder: Recorder | None = None,
    ) -> None:
        recipe = config.recipe
        self.student, self.teacher, self.config, self.device = student.eval(), teacher, config, device
        # A step needs most of its memory for the whole network's activations. The generator's step needs it for other tensors.
        recompute_values(student)
        self.stored_logits = stored_logits
        self.ranks = Ranks.current()
        self.graph = None if recorder is None else GraphedStep(self._held_step, recorder)
        self.inputs: StaticInputs[ShardBatch] = StaticInputs()
        self.compiled = Compiled(student) if recipe.compile else None
        self.optimizer = build_optimizer(student, recipe, device)
        if recipe.lr_unit == "relative":
            RelativeSteps(student, self.optimizer)
        self.objective = StudentObjective(recipe.ce_weight, recipe.kl_weight, recipe.temperature, recipe.ce_min_confidence)
        self.features: tuple[str, ...] = ()
        if recipe.feature_weight:
            spec = teacher.spec
            self.features = feature_modules(teacher.model, torch.zeros(1, *spec.shape, device=device))
        self.ema = WeightEma(student, recipe.weight_ema)
        self.selection = Selection()
        self.step = 0
        self.measured: dict[str, float] = {}

    def take_step(self, batch: ShardBatch, whole: int, rate: float) -> dict[str, Tensor | float]:
        """Take one optimizer step on this process's part of a batch of `whole` images. Returns the values for metrics.jsonl."""
        set_learning_rate(self.optimizer, rate)
        batch = self._to_device(batch, whole)
        if self.graph is None:
            values = self._device_step(batch, whole)
        elif whole != self.config.recipe.batch_size:  # the last batch of a pass, in memory of its own
            values = self.graph.recorder.plain(lambda: self._device_step(batch, whole))
        else:
            self.inputs.hold(batch)
            values = self.graph()
        self.ema.update(self.step)
        return {"step": self.step, **values, "lr": rate}

    @torch.no_grad()
    def _to_device(self, batch: ShardBatch, whole: int) -> ShardBatch:
        """Return a batch as network input on the device. The random values of a step are drawn here."""
        random = stream(self.config.runtime.seed, "augment", self.step)
        own = self.ranks.share(whole)
        pixels = augment(batch.pixels, self.config.recipe.augment, random, whole=whole, own=own)
        seen = ShardBatch(pixels, batch.labels, batch.logits if self.stored_logits else None)
        return seen.each(lambda part: part.to(self.device, non_blocking=True))

    def _held_step(self) -> dict[str, Tensor]:
        batch = self.inputs.held
        return self._device_step(batch, len(batch.labels))

    def _device_step(self, batch: ShardBatch, whole: int) -> dict[str, Tensor]:
        """Take the step on the device, without synchronising or reading a value, as a CUDA graph requires."""
        # The mean over processes is minimised, so unequal parts are weighted by their number of images.
        weight = len(batch.labels) * self.ranks.world / whole
        self.optimizer.zero_grad(set_to_none=True)
        zero = torch.zeros((), device=self.device)
        if not len(batch.labels):
            names = (*self.objective.names, *(["features"] if self.features else []))
            terms, shares = dict.fromkeys(names, zero), dict.fromkeys(SHARES, zero)
        else:
            with outputs_of(self.teacher.model, self.features) as wanted, outputs_of(self.student, self.features) as given:
                images, teacher_logits = self._inputs_and_logits(batch)
                network = self.student if self.compiled is None or whole != self.config.recipe.batch_size else self.compiled
                with training_autocast(self.config.runtime, self.device):
                    student_logits = network(images)
            terms = self.objective(student_logits, teacher_logits, batch.labels)
            if self.features:
                terms["features"] = self.config.recipe.feature_weight * feature_distance(given, wanted)
            terms = {name: weight * term for name, term in terms.items()}
            torch.stack(list(terms.values())).sum().backward()
            own_top1, teacher_top1 = student_logits.detach().argmax(1), teacher_logits.argmax(1)
            same = (own_top1 == teacher_top1, own_top1 == batch.labels, teacher_top1 == batch.labels)
            shares = {name: weight * hits.float().mean() for name, hits in zip(SHARES, same, strict=True)}
        average_gradients(self.student.parameters())
        self.optimizer.step()
        return {**{f"loss/{name}": term.detach() for name, term in terms.items()}, **shares}

    @torch.no_grad()
    def _inputs_and_logits(self, batch: ShardBatch) -> tuple[Tensor, Tensor]:
        """Return a batch's images as network input, and the teacher's logits for them."""
        images = to_network_input(batch.pixels, self.teacher.spec, self.config.recipe.low_pass)
        return images, (self.teacher.model(images) if batch.logits is None else batch.logits).float()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs. Random draws and learning rates are functions of (seed, step)."""
        return {
            "step": self.step,
            "seed": self.config.runtime.seed,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "selection": self.selection.state_dict(),
            "measured": self.measured,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint of a run with the same settings."""
        self.student.load_state_dict(state["student"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.selection.load_state_dict(state["selection"])
        self.step, self.measured = state["step"], state["measured"]
