"""Top-1 and top-5 on real images."""

import time
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from clusterq_common.device.distributed import Ranks
from clusterq_common.device.reduce import sum_across
from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise
from clusterq_common.intervals import wilson_interval
from clusterq_common.settings import Settings
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.real import Remark, ValidationBatch, ValidationImages
from clusterq_finetune.evaluation.binary import BinaryResult, binary_result
from clusterq_finetune.evaluation.predictions import Predictions

TOP = 5
BINS = 15
WORST_PAIRS = 10
TEACHER = "teacher"
ABSENT = "classes without images, left out of averages over classes"


class Confusion(Settings):
    """Images of class `label` that were taken for class `predicted`."""

    label: int
    predicted: int
    images: int


class EvaluationResult(Settings):
    """Result of one model.

    Attributes:
        images: readable images, on which the figures are.
        top1, top5: percent; top5 over fewer classes than five is over all of them.
        top1_interval: 95 % confidence interval of top1 for that many images (Wilson, 1927), percent.
        balanced_accuracy: mean of the classes' top-1 over the classes that have images, percent.
        binary: AUROC, sensitivity and specificity; None for more than two classes.
        agreement: percent of images on which the model and the teacher name the same class; None where there is no teacher.
        calibration_error: expected calibration error, percent: the gap between confidence and accuracy, in 15 bins of confidence,
            weighed by their images (Guo et al., 2017).
        per_class: top-1 of each class in percent, None for a class without images.
        worst_pairs: the most frequent confusions, at most ten.
        images_per_second: through the network alone.
        decode_seconds: waiting for images, shared by all models of one pass.
        unreadable: names of images that could not be decoded; they do not count.
        modes: how many images there were of each of PIL's pixel modes, as `{"RGB": 49000, "I;16": 12}`; the most frequent first.
        remarks: what was skipped, reordered or guessed on the way to the pixels.
    """

    images: int
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    balanced_accuracy: float
    binary: BinaryResult | None
    agreement: float | None
    calibration_error: float
    per_class: list[float | None]
    worst_pairs: list[Confusion]
    images_per_second: float
    decode_seconds: float
    unreadable: list[str]
    modes: dict[str, int]
    remarks: list[Remark]


class _Counts:
    """Sums over batches for one model, on its device."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.long, device=device)
        self.top5 = torch.zeros((), dtype=torch.long, device=device)
        self.agreed = torch.zeros((), dtype=torch.long, device=device)
        # By bin of confidence: images, right ones, summed confidence.
        self.bins = torch.zeros(BINS, 3, dtype=torch.float64, device=device)
        # Of two classes, by image: how much it speaks for class 1, and its label.
        self.scores: list[Tensor] = []
        self.seconds = 0.0

    def add(self, logits: Tensor, labels: Tensor, teacher_top1: Tensor | None) -> Tensor:
        """Count a batch in; returns the predicted classes."""
        logits = logits.float()
        confidence, predicted = logits.softmax(1).max(1)
        # Indices beyond the labels' range cannot occur: a model has as many outputs as its teacher has classes.
        self.confusion.view(-1).index_add_(0, labels * self.confusion.shape[0] + predicted, torch.ones_like(labels))
        self.top5 += (logits.topk(min(TOP, logits.shape[1]), dim=1).indices == labels[:, None]).any(1).sum()
        if teacher_top1 is not None:
            self.agreed += (predicted == teacher_top1).sum()
        right = (predicted == labels).double()
        rows = torch.stack([torch.ones_like(right), right, confidence.double()], dim=1)
        if logits.shape[1] == 2:
            self.scores.append(torch.stack([(logits[:, 1] - logits[:, 0]).double(), labels.double()]))
        self.bins.index_add_(0, (confidence * BINS).long().clamp(max=BINS - 1), rows)
        return predicted

    def top1(self) -> float:
        """Percent right so far."""
        return 100 * float(self.confusion.diagonal().sum() / self.confusion.sum())

    def merge(self, ranks: Ranks) -> None:
        """Add what the other processes counted; the seconds are the slowest one's."""
        self.confusion, self.top5 = sum_across(self.confusion), sum_across(self.top5)
        self.agreed, self.bins = sum_across(self.agreed), sum_across(self.bins)
        self.seconds = max(ranks.gather(self.seconds))
        own = torch.cat(self.scores, dim=1).cpu() if self.scores else torch.zeros(2, 0, dtype=torch.float64)
        self.scores = ranks.gather(own)

    def result(self, *, agreement: bool, decode_seconds: float, read: "_Read") -> EvaluationResult:
        confusion = self.confusion.cpu()
        of_class, right = confusion.sum(1), confusion.diagonal()
        count, hits = int(of_class.sum()), int(right.sum())
        _, correct, confidence = self.bins.cpu().unbind(1)
        wrong = confusion - torch.diag(right)
        order = wrong.flatten().argsort(descending=True, stable=True)[:WORST_PAIRS].tolist()
        classes = len(confusion)
        per_class = [100 * int(r) / int(n) if n else None for r, n in zip(right, of_class, strict=True)]
        present = [value for value in per_class if value is not None]
        scores, labels = torch.cat(self.scores, dim=1).numpy()
        return EvaluationResult(
            images=count,
            top1=100 * hits / count,
            top5=100 * int(self.top5) / count,
            top1_interval=wilson_interval(hits, count),
            balanced_accuracy=sum(present) / len(present),
            binary=binary_result(confusion.tolist(), scores, labels) if classes == 2 else None,
            agreement=100 * int(self.agreed) / count if agreement else None,
            calibration_error=100 * float((confidence - correct).abs().sum()) / count,
            per_class=per_class,
            worst_pairs=[
                Confusion(label=at // classes, predicted=at % classes, images=int(wrong.flatten()[at]))
                for at in order
                if wrong.flatten()[at]
            ],
            images_per_second=count / max(self.seconds, 1e-9),
            decode_seconds=decode_seconds,
            unreadable=read.unreadable,
            modes=read.modes,
            remarks=read.remarks,
        )


class _Read:
    """Record of the reading: unreadable images, pixel modes, and remarks."""

    def __init__(self) -> None:
        self.unreadable: list[str] = []
        self.modes: dict[str, int] = {}
        self.remarks: list[Remark] = []
        self._remarked: list[tuple[str, str]] = []

    def add(self, batch: ValidationBatch) -> None:
        """Note a batch down."""
        self.unreadable += batch.unreadable
        self._remarked += batch.remarks
        for mode in batch.modes:
            self.modes[mode] = self.modes.get(mode, 0) + 1

    def merge(self, ranks: Ranks, images: ValidationImages, of_class: list[int]) -> None:
        """Add what the other processes found, and what was remarked when the images were listed. The order is that of one process.

        Args:
            ranks: all processes.
            images: those that were read.
            of_class: readable images of each class, of all processes.
        """
        parts = ranks.gather((self.unreadable, self.modes, self._remarked))
        self.unreadable = sorted(name for names, _, _ in parts for name in names)
        counted = Counter[str]()
        names_of: dict[str, list[str]] = {}
        for _, modes, remarked in parts:
            counted.update(modes)
            for what, name in remarked:
                names_of.setdefault(what, []).append(name)
        self.modes = dict(sorted(counted.items(), key=lambda one: (-one[1], one[0])))
        named = images.class_names or [str(number) for number in range(len(of_class))]
        absent = [name for name, count in zip(named, of_class, strict=True) if not count]
        self.remarks = [*images.remarks, *([Remark.of(ABSENT, absent)] if absent else [])]
        self.remarks += [Remark.of(what, sorted(names_of[what])) for what in sorted(names_of)]


def evaluate_models(
    models: Mapping[str, nn.Module],
    images: ValidationImages,
    *,
    device: torch.device,
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    predictions: Predictions | None = None,
) -> dict[str, EvaluationResult]:
    """Evaluate several models in one pass over the images, in float32. Several processes share the images out; each gets the result.

    Args:
        models: by name; on `device`. Their training mode is restored afterwards. The one called `teacher`, first if it is there, is
            what the others' agreement is with.
        images: what to evaluate on.
        device: where the models are.
        batch_size: images in a batch.
        workers: decoding processes.
        progress: called after each batch with the images seen so far, their total, and each model's top-1 so far in percent (of this
            process's images).
        predictions: where each image's predictions go, if anywhere.

    Raises:
        ClusterqError: not one image can be read, or one cannot be understood without a setting.
    """
    ranks = Ranks.current()
    modes = {name: model.training for name, model in models.items()}
    counts = {name: _Counts(images.spec.num_classes, device) for name in models}
    read = _Read()
    count, decode_seconds = 0, 0.0
    mark = time.monotonic()
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for batch in images.batches(batch_size, workers, ranks):
            if batch.refused:
                raise ClusterqError(batch.refused)
            read.add(batch)
            count += len(batch.labels)
            decode_seconds += time.monotonic() - mark
            if len(batch.labels):
                logits = _count_batch(models, counts, batch, images.spec, device)
                if predictions is not None:
                    predictions.add(batch.names, batch.labels, logits)
            if progress is not None:
                # Timing has waited for the device already.
                so_far = {name: counted.top1() for name, counted in counts.items()} if count else {}
                progress(min(len(images), (count + len(read.unreadable)) * ranks.world), len(images), so_far)
            mark = time.monotonic()
    for name, model in models.items():
        model.train(modes[name])
        counts[name].merge(ranks)
    read.merge(ranks, images, next(iter(counts.values())).confusion.sum(1).tolist())
    if not sum(ranks.gather(count)):
        raise _none_readable(images, read.unreadable)
    return {
        name: counted.result(agreement=TEACHER in models and name != TEACHER, decode_seconds=decode_seconds, read=read)
        for name, counted in counts.items()
    }


def _count_batch(
    models: Mapping[str, nn.Module],
    counts: Mapping[str, _Counts],
    batch: ValidationBatch,
    spec: InputSpec,
    device: torch.device,
) -> dict[str, Tensor]:
    """Run all models on a batch and count their answers. Returns their logits (N, K) by name."""
    pixels, labels = batch.pixels.to(device), batch.labels.to(device)
    inputs = normalise(pixels, spec).contiguous(memory_format=torch.channels_last)
    teacher_top1 = None
    logits: dict[str, Tensor] = {}
    for name, model in models.items():
        begin = _now(device)
        logits[name] = model.eval()(inputs)
        counts[name].seconds += _now(device) - begin
        top1 = counts[name].add(logits[name], labels, teacher_top1)
        teacher_top1 = top1 if name == TEACHER else teacher_top1
    return logits


def _none_readable(images: ValidationImages, unreadable: list[str]) -> ClusterqError:
    first = f" (the first is {unreadable[0]})" if unreadable else ""
    return ClusterqError(
        f"none of the {len(unreadable)} images in {images.root} can be read{first}, expected image files; check the folder.",
        setting="val",
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
