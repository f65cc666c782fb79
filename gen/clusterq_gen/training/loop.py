"""Generator training: alternating steps of the generator and of the student."""

from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from clusterq_common.device.cuda_graph import GraphedStep, Recorder, cuda_recorder
from clusterq_common.device.distributed import Ranks
from clusterq_common.device.reduce import average_gradients, broadcast, sum_across
from clusterq_common.files import make_folder
from clusterq_common.progress.console import progress, warn
from clusterq_common.quant.convert import settle_scales
from clusterq_common.run.checkpoint import save_weights
from clusterq_common.run.kept import InFolder
from clusterq_common.run.metrics import MetricsLog
from clusterq_common.run.run_folder import GENERATOR, METRICS, SAMPLES, STUDENT
from clusterq_common.taps import BatchNormTaps, StoredStatistics, batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_gen.config import GenConfig
from clusterq_gen.losses.batch import StepBatch
from clusterq_gen.training.centroids import Centroids, ClassFeatures
from clusterq_gen.training.samples import save_grid
from clusterq_gen.training.state import Training

GRIDS_IN_A_RUN = 8

GraphedSteps = dict[bool, GraphedStep]


def train_generator(config: GenConfig, teacher: Teacher, folder: Path, device: torch.device, *, resume: bool) -> Training:
    """Train a generator for a teacher and write checkpoints, metrics, sample grids and the final networks into `folder`.

    With `resume`, training continues from the last checkpoint, with the same result as without the interruption. Several
    processes share each batch; the first one writes.

    Raises:
        ClusterqError: a loss is no longer finite; the last good checkpoint stays.
    """
    first = Ranks.current().first
    run = Training.start(config, teacher, device)
    seconds_apart = config.train.checkpoint_seconds
    kept = InFolder(folder, resume=resume, tensorboard=config.output.tensorboard, checkpoint_seconds=seconds_apart)
    kept.begin(run)
    broadcast(run.generator)
    _add_grids(kept.log, config, folder, before=run.step)
    begun, per_epoch = run.step, config.train.steps_per_epoch

    recorder = cuda_recorder(device) if config.train.cuda_graphs else None
    bar = progress("training", run.total_steps, done=run.step, images=config.train.batch_size, phase="generator")
    with closing(kept), bar as ticker, batchnorm_taps(teacher.model) as taps:
        stored = run.stored_statistics()
        graphs = graphed_steps(run, taps, stored, recorder) if recorder else None
        while run.step < run.total_steps:
            if run.step == run.warmup_steps and run.student is None:
                run.end_warmup()
            if run.step % per_epoch == 0 or run.step == begun:
                run.set_learning_rates(run.step // per_epoch)

            values = {"step": run.step, **train_step(run, taps, stored, graphs)}
            run.step += 1

            end_of_epoch = run.step % per_epoch == 0
            record = kept.add_step(values, now=end_of_epoch)
            if record is not None:
                if end_of_epoch and first:
                    _maybe_grid(run, folder, kept.log)
                kept.state(run, last=run.step == run.total_steps)
            ticker.advance(note="" if record is None else _note(record))

    if first:
        if run.student is not None:
            settle_scales(run.student, warn)
            save_weights(folder / STUDENT, run.student)
        # Written last, since its presence marks the training as finished.
        save_weights(folder / GENERATOR, run.generator)
    Ranks.current().wait()
    return run


def train_step(
    run: Training, taps: BatchNormTaps, stored: dict[str, StoredStatistics], graphs: GraphedSteps | None = None
) -> dict[str, Tensor | float]:
    """Take one step of the generator and, after warm-up, one of the student.

    For ClusterQ these are Eq. 7 in warm-up, then Eq. 8 and Eq. 9. One teacher forward serves both. The student runs in the
    generator's step only if the method uses its logits. With `graphs`, recorded steps are replayed. Returns the values for
    metrics.jsonl, as scalars still on the device. On a mixed image the teacher is correct if it names one of its classes.
    """
    run.draws.begin(run.step)
    in_detail = run.step % run.config.train.gradient_norm_every == 0
    if graphs is None:
        values = device_step(run, taps, stored, in_detail=in_detail)
    else:
        values = graphs[in_detail](phase=run.student is not None)
    return {**values, "lr": run.rate}


def graphed_steps(run: Training, taps: BatchNormTaps, stored: dict[str, StoredStatistics], recorder: Recorder) -> GraphedSteps:
    """Return both kinds of a step, with gradient norms (True) and without (False). Each is recorded on its own."""
    return {
        in_detail: GraphedStep(partial(device_step, run, taps, stored, in_detail=in_detail), recorder)
        for in_detail in (False, True)
    }


def device_step(
    run: Training, taps: BatchNormTaps, stored: dict[str, StoredStatistics], *, in_detail: bool = False
) -> dict[str, Tensor]:
    """Take the step from prepared draws, without synchronising or reading a value, as a CUDA graph requires."""
    latent = run.inputs()
    with run.autocast():
        images = run.network("generator", plain=in_detail)(latent.z, latent.classes)
        teacher_logits = run.network("teacher", plain=in_detail)(images)
        opponent_logits = run.opponent_logits(images)
    correct = latent.asked_for(teacher_logits.detach().argmax(1))
    features = None
    if run.centroids is not None:
        features = run.centroids.layers.statistics(taps, latent.groups, correct & latent.unmixed)
    batch = StepBatch(
        run.draws,
        images,
        latent.labels,
        latent.groups,
        teacher_logits,
        taps,
        stored,
        features,
        run.centroids,
        opponent_logits,
        latent.mixture,
    )
    values = _update_generator(run, batch, in_detail=in_detail)
    if run.centroids is not None and features is not None:
        values |= _update_centroids(run, run.centroids, features, stored, in_detail=in_detail)
    values["teacher/accuracy"] = correct.float().mean()
    if run.student is not None:
        values |= _update_student(run, run.student, images.detach(), teacher_logits.detach(), latent.classes)
    # The moments keep the step's whole autograd graph, and so its memory, alive.
    taps.moments.clear()
    return values


def _update_generator(run: Training, batch: StepBatch, *, in_detail: bool) -> dict[str, Tensor]:
    """Take the generator's optimizer step. Returns its losses; in detail also each one's gradient norm at the images."""
    terms = run.method.generator_terms(batch, warmup=run.student is None)
    run.optimizer.zero_grad(set_to_none=True)
    norms = {}
    if in_detail:
        norms = _backward_by_term(terms, batch.images)
    else:
        torch.stack(list(terms.values())).sum().backward()
    average_gradients(run.generator.parameters())
    run.optimizer.step()
    losses = {f"loss/{name}": term.detach() for name, term in terms.items()}
    return losses | {f"gradient/{name}": norm for name, norm in norms.items()}


def _update_centroids(
    run: Training, centroids: Centroids, features: ClassFeatures, stored: dict[str, StoredStatistics], *, in_detail: bool
) -> dict[str, Tensor]:
    """Move the EMA centroids towards the batch's statistics. Returns how far they were apart; in detail also for each layer."""
    drift: dict[str, Tensor] = {}
    if in_detail:  # recorded for each step, they would be most of the metrics
        by_layer = centroids.drift(features, stored).unbind()
        drift = {f"drift/{name}": apart for name, apart in zip(centroids.layers.names, by_layer, strict=True)}
    drift["centroids/drift"] = centroids.update(features, run.config.method.ema_rate)
    return drift


def _update_student(
    run: Training, student: nn.Module, images: Tensor, teacher_logits: Tensor, classes: Tensor
) -> dict[str, Tensor]:
    """Take the in-loop student's optimizer step on the generator's images. Returns its losses and its agreement with the teacher."""
    assert run.student_optimizer is not None
    with run.autocast():
        student_logits = run.network("student")(images)
    terms = run.method.student(student_logits, teacher_logits, classes)
    run.student_optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    average_gradients(student.parameters())
    run.student_optimizer.step()
    agreement = (student_logits.detach().argmax(1) == teacher_logits.argmax(1)).float().mean()
    return {**{f"student/{name}": term.detach() for name, term in terms.items()}, "student/agreement": agreement}


def _backward_by_term(terms: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Back-propagate the sum of the terms, and return the norm of each term's gradient at the generator's output.

    All gradients reach the generator through its images, so back-propagating their sum gives the whole gradient. The processes'
    mean loss is minimised, so a process's gradient has weight 1 / world.
    """
    gradients = {}
    for name, term in terms.items():
        (gradients[name],) = torch.autograd.grad(term, images, retain_graph=True)
    images.backward(torch.stack(list(gradients.values())).sum(0))
    squares = torch.stack([gradient.float().square().sum() for gradient in gradients.values()])
    norms = sum_across(squares).sqrt() / Ranks.current().world
    return dict(zip(gradients, norms.unbind(), strict=True))


def _note(record: dict[str, float]) -> str:
    """Return the text of the progress line: the method's first loss and the agreement of teacher and student."""
    name = next(key for key in record if key.startswith("loss/"))
    parts = [f"{name.removeprefix('loss/')} {record[name]:.3f}", f"teacher {100 * record['teacher/accuracy']:.0f} %"]
    if "student/agreement" in record:
        parts.append(f"student agrees {100 * record['student/agreement']:.0f} %")
    return ", ".join(parts)


def write_events(config: GenConfig, folder: Path) -> None:
    """Write TensorBoard's events of a finished training from its records and image grids."""
    steps = config.train.epochs * config.train.steps_per_epoch
    with closing(MetricsLog(folder / METRICS, keep_before_step=steps, tensorboard=True)) as log:
        _add_grids(log, config, folder, before=steps)


def _add_grids(log: MetricsLog, config: GenConfig, folder: Path, *, before: int) -> None:
    """Add the image grids of the steps before `before` to TensorBoard's events, if there are any."""
    if log.events is not None:
        for epoch in range(1, before // config.train.steps_per_epoch + 1):
            if _grid(folder, epoch).is_file():
                log.events.add_picture(SAMPLES, _grid(folder, epoch), epoch * config.train.steps_per_epoch - 1)


def _grid(folder: Path, epoch: int) -> Path:
    return folder / SAMPLES / f"epoch-{epoch:04d}.png"


def _maybe_grid(run: Training, folder: Path, log: MetricsLog) -> None:
    epoch, epochs = run.step // run.config.train.steps_per_epoch, run.config.train.epochs
    if epoch == epochs or epoch % max(1, epochs // GRIDS_IN_A_RUN) == 0:
        make_folder(folder / SAMPLES)
        save_grid(_grid(folder, epoch), run.generator, run.teacher.spec, run.config.runtime.seed)
        if log.events is not None:
            log.events.add_picture(SAMPLES, _grid(folder, epoch), run.step - 1)
