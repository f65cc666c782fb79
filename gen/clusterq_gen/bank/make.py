"""Making of a bank on disk, from noise. Finished batches are kept; the others are divided among the processes."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from clusterq_common.device.cuda_graph import Recorder, cuda_recorder
from clusterq_common.device.distributed import Ranks
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write, make_folder
from clusterq_common.progress.console import progress
from clusterq_common.run.run_folder import METRICS, SAMPLES, TENSORBOARD
from clusterq_common.run.seeding import stream
from clusterq_common.run.tensorboard import EventFiles
from clusterq_common.setting_names import setting_name
from clusterq_common.teacher.load import Teacher
from clusterq_gen.bank.files import batch_path, is_finished, made_of, read_answers, read_losses, read_pixels, write_batch
from clusterq_gen.bank.layout import BankLayout
from clusterq_gen.bank.optimise import BankBatch, NotFiniteError, Optimiser
from clusterq_gen.bank.statistics import noise_images
from clusterq_gen.config import GenConfig
from clusterq_gen.training.samples import COLUMNS, MOST_CLASSES, write_grid


@dataclass(frozen=True)
class BankRun:
    """Data shared by all batches of a bank. Batch `number` depends on the seed and the number alone."""

    optimiser: Optimiser
    layout: BankLayout

    @classmethod
    def start(cls, config: GenConfig, teacher: Teacher, device: torch.device, recorder: Recorder | None = None) -> "BankRun":
        """Measure the margins, if there are any, and compute the layout. With a recorder, steps are recorded and replayed."""
        optimiser = Optimiser.start(config.bank, config.runtime, teacher, device, recorder)
        return cls(optimiser, BankLayout.of(config, teacher.spec.num_classes))

    def optimise(self, number: int) -> BankBatch:
        """Optimise one batch, starting from noise.

        Raises:
            ClusterqError: the images, or a loss, are no longer finite.
        """
        optimiser = self.optimiser
        noise = noise_images(optimiser.teacher, self.layout.batch_size, stream(optimiser.runtime.seed, "bank", number))
        try:
            return optimiser.optimise(noise, self.layout.labels(number), number)
        except NotFiniteError as error:
            raise ClusterqError(
                f"batch {number} of the bank: {error}; finished batches are kept: try a smaller {setting_name('bank_lr')} in a new run."
            ) from error


def make_bank(config: GenConfig, teacher: Teacher, folder: Path, device: torch.device) -> None:
    """Optimise every missing batch, then write the losses of each batch (metrics.jsonl) and a grid of images.

    A batch depends on the seed and its number alone, so an interrupted bank continues to the same bytes. Under torchrun,
    process r makes the batches r, r + world, ...

    Raises:
        ClusterqError: see `BankRun.optimise`. Or there is no device for `cuda_graphs`.
    """
    ranks, made = Ranks.current(), made_of(config, teacher)
    layout = BankLayout.of(config, teacher.spec.num_classes)
    mine = layout.share(ranks)
    missing = [number for number in mine if not is_finished(batch_path(folder, number), made)]
    events = EventFiles(folder / TENSORBOARD) if config.output.tensorboard and ranks.first else None
    if events is not None:
        events.add(_record(folder, number) for number in mine if number not in missing)
    if missing:
        run = BankRun.start(config, teacher, device, cuda_recorder(device) if config.train.cuda_graphs else None)
        begun = len(mine) - len(missing)
        with progress("optimising batches", len(mine), done=begun, images=layout.batch_size, phase="bank") as ticker:
            for number in missing:
                batch = run.optimise(number)
                write_batch(batch_path(folder, number), batch, made)
                if events is not None:
                    events.add([_record(folder, number)])
                agreed = float((batch.top1 == batch.labels).float().mean())
                ticker.advance(note=_note(batch.losses, agreed if layout.classes else None))
    ranks.wait()
    if ranks.first:
        paths = [batch_path(folder, number) for number in range(layout.batches)]
        records = [_record(folder, number) for number in range(layout.batches)]
        atomic_write(folder / METRICS, "".join(json.dumps(record) + "\n" for record in records))
        make_folder(folder / SAMPLES)
        drawn = _save_grid(folder / SAMPLES / "bank.png", paths, layout.num_classes)
        if events is not None:
            events.add(record for record in records if record["step"] not in mine)  # what other processes made
            if drawn:
                events.add_picture(SAMPLES, folder / SAMPLES / "bank.png", layout.batches - 1)
            events.close()
    ranks.wait()


def _note(losses: dict[str, float], agreed: float | None) -> str:
    """Return the text of the progress line: first and last value of each loss term."""
    names = [name.removeprefix("loss/") for name in losses if name.startswith("loss/")]
    parts = [f"{name} {losses[f'first/{name}']:.3g} -> {losses[f'loss/{name}']:.3g}" for name in names]
    return ", ".join(parts + ([] if agreed is None else [f"teacher {100 * agreed:.0f} %"]))


def _record(folder: Path, number: int) -> dict[str, float]:
    """Return a batch's record for metrics.jsonl: its number as `step`, its losses, and the teacher's accuracy on its labels."""
    batch = batch_path(folder, number)
    labels, top1 = read_answers(batch)
    agreed = sum(a == b for a, b in zip(labels, top1, strict=True)) / len(labels)
    return {"step": number, **read_losses(batch), "teacher/accuracy": agreed}


def _save_grid(path: Path, batches: list[Path], num_classes: int) -> bool:
    """Write a grid with the first images of each of the first classes, one row a class. Missing images are white.

    Returns:
        Whether the bank had any image to show.
    """
    classes = min(num_classes, MOST_CLASSES)
    rows: list[list[torch.Tensor]] = [[] for _ in range(classes)]
    for batch in batches:
        labels, _ = read_answers(batch)
        for place, label in enumerate(labels):
            if label < classes and len(rows[label]) < COLUMNS:
                rows[label].append(read_pixels(batch, [place])[0])
        if all(len(row) == COLUMNS for row in rows):
            break
    white = torch.full_like(next(row for row in rows if row)[0], 255) if any(rows) else None
    if white is not None:
        write_grid(path, torch.stack([image for row in rows for image in row + [white] * (COLUMNS - len(row))]))
    return white is not None
