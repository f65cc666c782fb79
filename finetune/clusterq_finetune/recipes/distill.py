"""The student learns labels and the teacher's logits from synthetic images (ClusterQ Eq. 9)."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.distill.objective import StudentObjective
from clusterq_common.quant.convert import spare_memory
from clusterq_common.runtime.checkpoint import load_checkpoint, save_checkpoint, taking_over
from clusterq_common.runtime.compiled import Compiled
from clusterq_common.runtime.device import training_autocast
from clusterq_common.runtime.distributed import Ranks
from clusterq_common.runtime.graph import GraphedStep, Recorder, cuda_recorder
from clusterq_common.runtime.metrics import MetricsLog
from clusterq_common.runtime.progress import progress, warn
from clusterq_common.runtime.reduce import average_gradients, broadcast
from clusterq_common.runtime.run_folder import CHECKPOINT, METRICS
from clusterq_common.runtime.seeding import stream
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.augment import augment
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data import EpochBatches, ShardBatch, ShardDataset
from clusterq_finetune.recipes.ema import WeightEma
from clusterq_finetune.recipes.features import feature_distance, feature_modules, outputs_of
from clusterq_finetune.recipes.heldout import START, Selection, measure_heldout
from clusterq_finetune.recipes.optimizer import build_optimizer, learning_rate, set_learning_rate
from clusterq_finetune.recipes.relative import RelativeSteps
from clusterq_finetune.resident import TrainingBatches
from clusterq_finetune.view import view

STEPS_BETWEEN_RECORDS = 25
# Of a batch's images: on which student and teacher name the same class, and on which each names the label.
SHARES = ("student/agreement", "student/accuracy", "teacher/accuracy")


class Distillation:
    """A fine-tuning between two steps: what a checkpoint holds, and what a step does.

    BatchNorm stays in eval mode: synthetic images do not have the statistics that the teacher's layers were trained with.
    With a `recorder`, full batches are steps of a graph.
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
        # The whole network's activations are what a step needs most memory for. The generator's step has others to hold.
        spare_memory(student)
        self.stored_logits = stored_logits
        self.ranks = Ranks.current()
        self.graph = None if recorder is None else GraphedStep(self._held_step, recorder)
        self._held: ShardBatch | None = None
        self.compiled = Compiled(student) if recipe.compile else None
        self.optimizer = build_optimizer(student, recipe, device)
        if recipe.lr_unit == "relative":
            RelativeSteps(student, self.optimizer)
        self.objective = StudentObjective(recipe.ce_weight, recipe.kl_weight, recipe.temperature, recipe.sure)
        self.features: tuple[str, ...] = ()
        if recipe.feature_weight:
            spec = teacher.spec
            self.features = feature_modules(teacher.model, torch.zeros(1, spec.channels, spec.size, spec.size, device=device))
        self.ema = WeightEma(student, recipe.weight_ema)
        self.selection = Selection()
        self.step = 0
        self.measured: dict[str, float] = {}

    def take_step(self, batch: ShardBatch, whole: int, rate: float) -> dict[str, Tensor | float]:
        """One optimizer step on this process's part of a batch of `whole` images. Returns what metrics.jsonl records."""
        set_learning_rate(self.optimizer, rate)
        batch = self._sent(batch, whole)
        if self.graph is None:
            values = self._device_step(batch, whole)
        elif whole != self.config.recipe.batch_size:  # the last batch of a pass, in memory of its own
            values = self.graph.recorder.plain(lambda: self._device_step(batch, whole))
        else:
            self._hold(batch)
            values = self.graph(phase=None, settings=None)
        self.ema.update(self.step)
        return {"step": self.step, **values, "lr": rate}

    @torch.no_grad()
    def _sent(self, batch: ShardBatch, whole: int) -> ShardBatch:
        """A batch as the networks are to see it, on the device. What is random in a step is drawn here."""
        random = stream(self.config.runtime.seed, "augment", self.step)
        own = self.ranks.share(whole)
        pixels = augment(batch.pixels, self.config.recipe.augment, random, whole=whole, own=own)
        seen = ShardBatch(pixels, batch.labels, batch.logits if self.stored_logits else None)
        return seen.each(lambda part: part.to(self.device, non_blocking=True))

    def _hold(self, batch: ShardBatch) -> None:
        """A batch into the memory that the graph reads."""
        if self._held is None:
            self._held = batch.each(torch.empty_like)
        for held, part in zip(self._held, batch, strict=True):
            if held is not None and part is not None:
                held.copy_(part)

    def _held_step(self) -> dict[str, Tensor]:
        assert self._held is not None
        return self._device_step(self._held, len(self._held.labels))

    def _device_step(self, batch: ShardBatch, whole: int) -> dict[str, Tensor]:
        """The step itself, on what lies on the device: it waits for nothing and looks at no value, as a CUDA graph needs it."""
        # The mean over processes is minimised: unequal parts weigh by their images.
        weight = len(batch.labels) * self.ranks.world / whole
        self.optimizer.zero_grad(set_to_none=True)
        zero = torch.zeros((), device=self.device)
        if not len(batch.labels):
            names = (*self.objective.names, *(["features"] if self.features else []))
            terms, shares = dict.fromkeys(names, zero), dict.fromkeys(SHARES, zero)
        else:
            with outputs_of(self.teacher.model, self.features) as wanted, outputs_of(self.student, self.features) as given:
                images, teacher_logits = self._asked(batch)
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
            shares = {name: weight * one.float().mean() for name, one in zip(SHARES, same, strict=True)}
        average_gradients(self.student.parameters())
        self.optimizer.step()
        return {**{f"loss/{name}": term.detach() for name, term in terms.items()}, **shares}

    @torch.no_grad()
    def _asked(self, batch: ShardBatch) -> tuple[Tensor, Tensor]:
        """A batch's images, and the teacher's logits for them."""
        images = view(batch.pixels, self.teacher.spec, self.config.recipe.low_pass)
        return images, (self.teacher.model(images) if batch.logits is None else batch.logits).float()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs. Random draws and learning rates are functions of (seed, step)."""
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
        """Take over a checkpoint of the same settings."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.selection.load_state_dict(state["selection"])
        self.step, self.measured = state["step"], state["measured"]


def distill(
    student: nn.Module,
    teacher: Teacher,
    shards: ShardSet,
    config: FinetuneConfig,
    folder: Path,
    device: torch.device,
    *,
    stored_logits: bool,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a calibrated student in place, from the `train` split.

    With `resume`, go on from the folder's checkpoint; the result is the same as without the interruption. Several processes
    share each batch; the first one writes.

    Returns:
        What the result says of it: `epoch` (the one whose weights the student has; -1: those it began with), and the last figures on held-out images.

    Raises:
        ClusterqError: a loss is no longer finite; the last good checkpoint stays. Or there is no device for --cuda-graphs.
    """
    recipe, ranks = config.recipe, Ranks.current()
    recorder = cuda_recorder(device) if recipe.cuda_graphs else None
    run = Distillation(student, teacher, config, device, stored_logits=stored_logits, recorder=recorder)
    if resume and (folder / CHECKPOINT).is_file():
        with taking_over(folder / CHECKPOINT):
            run.load_state_dict(load_checkpoint(folder / CHECKPOINT, device))
    broadcast(student)
    dataset = ShardDataset(shards, "train")
    order = EpochBatches(len(dataset), recipe.batch_size, config.runtime.seed, steps=recipe.steps(len(dataset)), ranks=ranks)
    batches = TrainingBatches(dataset, device, workers=recipe.workers)
    heldout = ShardDataset(shards, "heldout") if "heldout" in shards.manifest.splits else None
    log = MetricsLog(folder / METRICS, keep_before_step=run.step, tensorboard=config.output.tensorboard)
    last_save = time.monotonic()
    records: list[dict[str, Tensor | float]] = []

    if recipe.select == "guarded" and heldout is None:
        warn("the shards have no held-out images: nothing guards against a student that gets worse (--select guarded)")
    if recipe.select != "last" and heldout is not None and run.step == 0 and recipe.epochs:
        run.selection.offer(student, measure_heldout(student, heldout, teacher, config, device)["heldout/kl"], START)
    bar = progress("fine-tuning", recipe.epochs * len(order), done=run.step, images=recipe.batch_size)
    with closing(log), bar as ticker:
        for epoch in range(run.step // len(order), recipe.epochs):
            order.epoch, order.first_step = epoch, run.step % len(order)
            for batch in batches(order):
                rate = learning_rate(recipe, run.step, len(order))
                records.append(run.take_step(batch, order.whole(run.step % len(order)), rate))
                run.step += 1
                note = ""
                if len(records) == STEPS_BETWEEN_RECORDS or run.step % len(order) == 0:
                    last = log.append_step_values(records, folder / CHECKPOINT)[-1]
                    records = []
                    if heldout is not None and run.step % len(order) == 0:
                        with run.ema.applied():
                            run.measured = measure_heldout(student, heldout, teacher, config, device)
                            if recipe.select == "heldout":
                                run.selection.offer(student, run.measured["heldout/kl"], epoch)
                        log.append([{"step": run.step - 1, "epoch": epoch, **run.measured}])
                    note = _note(last, run.measured)
                    due = run.step == recipe.epochs * len(order) or time.monotonic() - last_save >= recipe.checkpoint_seconds
                    if due and ranks.first:
                        save_checkpoint(folder / CHECKPOINT, run.state_dict())
                    last_save = time.monotonic() if due else last_save
                ticker.advance(note=note)
    run.ema.finish()
    if recipe.select == "guarded" and run.measured:
        run.selection.forget_unless_better_than(run.measured["heldout/kl"])
    if run.selection.student and run.selection.epoch == START:
        warn(
            f"on held-out images the student that training began with is the closest to the teacher (KL {run.selection.kl:.3g}, at the end "
            f"{run.measured['heldout/kl']:.3g}): it is kept; a smaller --lr may do better"
        )
    run.selection.finish(student)
    ranks.wait()
    chosen = run.selection.epoch if run.selection.student else recipe.epochs - 1
    return {"epoch": chosen, **run.measured}


def _note(record: dict[str, float], heldout: dict[str, float]) -> str:
    """The progress line's numbers: the loss, and how often the student says what the teacher says."""
    loss = sum(value for name, value in record.items() if name.startswith("loss/"))
    parts = [f"loss {loss:.3f}", f"agrees with teacher {100 * record['student/agreement']:.0f} %"]
    if "heldout/agreement" in heldout:
        parts.append(f"held-out {100 * heldout['heldout/agreement']:.1f} %")
    return ", ".join(parts)
