"""Distillation: training of the student on labels and the teacher's logits of synthetic images (ClusterQ Eq. 9)."""

from contextlib import closing
from typing import Any

import torch
from torch import nn

from clusterq_common.device.cuda_graph import cuda_recorder
from clusterq_common.device.distributed import Ranks
from clusterq_common.device.reduce import broadcast
from clusterq_common.progress.console import progress, warn
from clusterq_common.run.kept import Records
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.resident import TrainingBatches
from clusterq_finetune.data.shard_batches import EpochBatches, ShardDataset
from clusterq_finetune.recipes.distillation import Distillation
from clusterq_finetune.recipes.heldout import START, measure_heldout
from clusterq_finetune.recipes.optimizer import learning_rate


def distill(
    student: nn.Module,
    teacher: Teacher,
    shards: ShardSet,
    config: FinetuneConfig,
    device: torch.device,
    kept: Records,
    *,
    stored_logits: bool,
) -> dict[str, Any]:
    """Train a calibrated student in place, on the `train` split. Several processes share each batch.

    Args:
        student, teacher: on `device`.
        shards: shards of that teacher.
        config: configuration; only its `recipe` and `runtime` are used.
        device: device of the networks.
        kept: stores records and states. In a folder, an interrupted run continues from there, to the same result.
        stored_logits: learn from the shards' logits instead of running the teacher.

    Returns:
        Values for the result: `epoch` (the epoch of the student's weights; -1: the initial ones), and the last figures on held-out
            images.

    Raises:
        ClusterqError: a loss is no longer finite; the last good checkpoint stays. Or there is no device for `cuda_graphs`.
    """
    recipe, ranks = config.recipe, Ranks.current()
    recorder = cuda_recorder(device) if recipe.cuda_graphs else None
    run = Distillation(student, teacher, config, device, stored_logits=stored_logits, recorder=recorder)
    kept.begin(run)
    broadcast(student)
    dataset = ShardDataset(shards, "train")
    order = EpochBatches(len(dataset), recipe.batch_size, config.runtime.seed, steps=recipe.steps(len(dataset)), ranks=ranks)
    heldout = ShardDataset(shards, "heldout") if "heldout" in shards.manifest.splits else None

    if recipe.select == "guarded" and heldout is None:
        warn(
            f"the shards have no held-out images: nothing guards against a student that gets worse ({setting_name('select', 'guarded')})"
        )
    if recipe.select != "last" and heldout is not None and run.step == 0 and recipe.epochs:
        run.selection.offer(student, _measure(run, heldout)["heldout/kl"], START)
    _train(run, TrainingBatches(dataset, device, workers=recipe.workers), order, heldout, kept)
    run.ema.finish()
    _choose_weights(run)
    ranks.wait()
    chosen = run.selection.epoch if run.selection.student else recipe.epochs - 1
    return {"epoch": chosen, **run.measured}


def _train(
    run: Distillation, batches: TrainingBatches, order: EpochBatches, heldout: ShardDataset | None, kept: Records
) -> None:
    """Take the steps of all epochs that are left.

    Args:
        run: the training.
        batches, order: training images, and their order by epoch.
        heldout: images that the student is measured on after each epoch, if any.
        kept: stores records and states.
    """
    recipe = run.config.recipe
    bar = progress("fine-tuning", recipe.epochs * len(order), done=run.step, images=recipe.batch_size, phase="fine-tuning")
    with closing(kept), bar as ticker:
        for epoch in range(run.step // len(order), recipe.epochs):
            order.epoch, order.first_step = epoch, run.step % len(order)
            for batch in batches(order):
                rate = learning_rate(recipe, run.step, len(order))
                values = run.take_step(batch, order.whole(run.step % len(order)), rate)
                run.step += 1
                end_of_epoch = run.step % len(order) == 0
                stored, note = kept.add_step(values, now=end_of_epoch), ""
                if stored is not None:
                    if heldout is not None and end_of_epoch:
                        with run.ema.applied():
                            run.measured = _measure(run, heldout)
                            if recipe.select == "heldout":
                                run.selection.offer(run.student, run.measured["heldout/kl"], epoch)
                        kept.add([{"step": run.step - 1, "epoch": epoch, **run.measured}])
                    note = _note(stored, run.measured)
                    kept.state(run, last=run.step == recipe.epochs * len(order))
                ticker.advance(note=note)


def _measure(run: Distillation, heldout: ShardDataset) -> dict[str, float]:
    return measure_heldout(run.student, heldout, run.teacher, run.config, run.device)


def _choose_weights(run: Distillation) -> None:
    """Put the selected weights into the student, with a warning where they are those that training began with."""
    if run.config.recipe.select == "guarded" and run.measured:
        run.selection.forget_unless_better_than(run.measured["heldout/kl"])
    if run.selection.student and run.selection.epoch == START:
        warn(
            f"on held-out images the student that training began with is the closest to the teacher (KL {run.selection.kl:.3g}, at the end "
            f"{run.measured['heldout/kl']:.3g}): it is kept; a smaller {setting_name('lr')} may do better"
        )
    run.selection.finish(run.student)


def _note(record: dict[str, float], heldout: dict[str, float]) -> str:
    """Return the text of the progress line: the loss, and the agreement of student and teacher."""
    loss = sum(value for name, value in record.items() if name.startswith("loss/"))
    parts = [f"loss {loss:.3f}", f"agrees with teacher {100 * record['student/agreement']:.0f} %"]
    if "heldout/agreement" in heldout:
        parts.append(f"held-out {100 * heldout['heldout/agreement']:.1f} %")
    return ", ".join(parts)
