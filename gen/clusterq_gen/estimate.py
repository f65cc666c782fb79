"""Prediction of a generator run's time on this machine, from timed steps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_common.device.cuda_graph import STEPS_TO_FULL_SPEED, Recorder, recorder_if
from clusterq_common.device.distributed import Ranks
from clusterq_common.device.timing import steady_line, steady_seconds
from clusterq_common.images.normalise import normalise, to_array
from clusterq_common.progress.time_budget import MeasuredTimes, Phase
from clusterq_common.run.seeding import stream
from clusterq_common.shards.digest import encode_samples
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_gen.bank.config import BankConfig, is_bank
from clusterq_gen.bank.layout import BankLayout
from clusterq_gen.bank.optimise import Optimiser
from clusterq_gen.config import GenConfig
from clusterq_gen.emission.candidates import CHUNK
from clusterq_gen.emission.refined import Batches
from clusterq_gen.networks.generator import build_generator
from clusterq_gen.training.loop import graphed_steps, train_step
from clusterq_gen.training.rehearsal import join_student
from clusterq_gen.training.state import Training, start_rounds
from clusterq_report.measure.analysis import report_seconds

# Pixels of the images in a measured step on a CPU, about; the time of larger batches follows from it. On a GPU it does not, so whole
# batches are measured there.
MEASURED_PIXELS = 200_000
LEAST_MEASURED = 4
# Steps in each repeat of a measurement, on a CPU and on a GPU, where one step is short.
TIMED_STEPS = {"cpu": 1, "cuda": 5}


@dataclass(frozen=True)
class Speed(MeasuredTimes):
    """Measured seconds.

    Attributes:
        step: a generator step without the student; 0 for a bank.
        image_step: one step of optimising one image: of the bank, or of the refinement; 0 without either.
        candidate: drawing, judging and encoding one image.
        student_share: a step with the in-loop student, in steps without it; 1 for a bank.
    """

    step: float
    image_step: float
    candidate: float
    student_share: float = 1.0

    def __str__(self) -> str:
        times = {"a generator step": self.step, "a step for one image": self.image_step, "drawing one image": self.candidate}
        return ", ".join(f"{what} {seconds:.2g} s" for what, seconds in times.items() if seconds)


def measure_speed(config: GenConfig, teacher: Teacher, device: torch.device) -> Speed:
    """Time a generator step, a step of optimising images, and the emission of a few images, all discarded."""
    bank = config.bank if is_bank(config.method.method) else config.emit.refinement
    recorder = recorder_if(config.train.cuda_graphs, device)
    step, share = (0.0, 1.0) if is_bank(config.method.method) else _generator_step(config, teacher, device, recorder)
    image_step = 0.0 if bank is None else image_step_seconds(bank, config, teacher, device, recorder)
    return Speed(step, image_step, _candidate(config, teacher, device), share)


def phases(config: GenConfig, num_classes: int, speed: Speed) -> list[Phase]:
    """Return the estimated phases of a run.

    Images that the teacher rejects are made again, and their number is not known beforehand: one candidate for each image is taken.
    """
    wanted = config.emit.wanted(num_classes)
    images = num_classes * sum(wanted.values())
    last = [Phase("shards", images * speed.candidate)]
    if config.output.report:
        # A forward pass of the teacher takes less than a candidate; one of a student takes longer.
        last.append(Phase("report", report_seconds(num_classes * wanted["train"], speed.candidate, speed.candidate)))
    if is_bank(config.method.method):
        layout = BankLayout.of(config, num_classes)
        steps = layout.batches * layout.batch_size * config.bank.bank_steps
        return [Phase("bank", steps * speed.image_step), *last]
    train = config.train
    warm, late = train.warmup_epochs * train.steps_per_epoch, (train.epochs - train.warmup_epochs) * train.steps_per_epoch
    rounds, batches = start_rounds(train, num_classes)
    # The student's first ranges and the centroids come from images of all classes.
    joining = rounds * batches * train.batch_size * speed.candidate if late else 0.0
    expected = [Phase("generator", speed.step * (warm + speed.student_share * late) + joining)]
    if config.emit.refine_steps:
        refined = Batches(num_classes, config.emit.refine_batch).candidates(sum(wanted.values()))
        expected.append(Phase("refinement", refined * config.emit.refine_steps * speed.image_step))
    return [*expected, *last]


def _generator_step(
    config: GenConfig, teacher: Teacher, device: torch.device, recorder: Recorder | None
) -> tuple[float, float]:
    """Return the seconds of a step without the student, and those of one with it in such steps."""
    run = Training.start(config, teacher, device)
    world, whole = Ranks.current().world, config.train.batch_size
    measured = min(whole, world * _measured(teacher))
    with batchnorm_taps(teacher.model) as taps:
        stored = run.stored_statistics()
        graphs = graphed_steps(run, taps, stored, recorder) if recorder else None
        run.step = 1  # a step whose gradient norms are not recorded

        def step_of(images: int) -> None:
            run.config = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": images})})
            train_step(run, taps, stored, graphs)

        def seconds() -> float:
            if device.type != "cpu" or measured == whole:
                return _step(lambda: step_of(whole), device, recorder)
            # The optimizer's work is the same for any number of images.
            return steady_line(step_of, world * (measured // world // 2), measured, device, whole)

        step = seconds()
        if config.train.epochs == config.train.warmup_epochs:
            return step, 1.0
        join_student(run, taps)
        return step, max(1.0, seconds() / step)


def image_step_seconds(
    bank: BankConfig, config: GenConfig, teacher: Teacher, device: torch.device, recorder: Recorder | None
) -> float:
    """Time one step of optimising images, with a recorder a replayed one. Returns its seconds for one image."""
    whole, spec = config.train.batch_size if is_bank(config.method.method) else config.emit.refine_batch, teacher.spec
    count = min(whole, _measured(teacher)) if device.type == "cpu" else whole
    optimiser = Optimiser.start(bank, config.runtime, teacher, device, recorder)
    start = normalise(_pixels(count, teacher), spec).to(device)
    labels = torch.arange(count) % spec.num_classes if bank.labelled else None
    steps = optimiser.steps_for(start.shape, labelled=bank.labelled)
    steps.begin(start, labels)
    # So small a rate that no setting of the run lets images diverge here; steps take as long with any.
    return _step(lambda: steps.take_step(1e-6, *optimiser.draws(count, 0, 0)), device, recorder) / count


def _step(step: Callable[[], object], device: torch.device, recorder: Recorder | None) -> float:
    """Return the seconds of a step after the first ones, which set up optimizers, kernels and recordings.

    On a CPU these take little longer than others, and the fastest step counts.
    """
    before = STEPS_TO_FULL_SPEED if recorder else int(device.type != "cpu")
    return steady_seconds(step, device, before=before, times=TIMED_STEPS[device.type])


@torch.no_grad()
def _candidate(config: GenConfig, teacher: Teacher, device: torch.device) -> float:
    spec, before = teacher.spec, int(device.type != "cpu")
    count = min(CHUNK, _measured(teacher)) if device.type == "cpu" else CHUNK
    pixels = _pixels(count, teacher)
    seconds = 0.0
    if not is_bank(config.method.method):
        generator = build_generator(config.generator, spec).to(device).eval()
        noise, labels = torch.zeros(count, config.generator.latent_size, device=device), torch.arange(count, device=device)
        seconds += steady_seconds(lambda: generator(noise, labels % spec.num_classes), device, before=before)
    shown = normalise(pixels, spec).to(device)
    seconds += steady_seconds(lambda: teacher.model(shown), device, before=before)
    arrays = [to_array(image) for image in pixels]
    encoding = steady_seconds(lambda: encode_samples([0] * count, arrays), device)
    return (seconds + encoding / max(1, config.emit.workers)) / count


def _pixels(count: int, teacher: Teacher) -> Tensor:
    shape = (count, *teacher.spec.shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, "estimate"))


def _measured(teacher: Teacher) -> int:
    return max(LEAST_MEASURED, MEASURED_PIXELS // (teacher.spec.height * teacher.spec.width))
