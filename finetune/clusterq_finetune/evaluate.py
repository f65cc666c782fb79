"""Top-1 and top-5 on real images."""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clusterq_common.images import normalise
from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.settings import Settings
from clusterq_finetune.datasets import ValidationImages

TOP = 5


class EvaluationResult(Settings):
    """How good one model is.

    Attributes:
        images: readable images, on which the accuracies are.
        top1, top5: percent; top5 over fewer classes than five is over all of them.
        images_per_second: through the network alone.
        decode_seconds: waiting for images, shared by all models of one pass.
        unreadable: names of images that could not be decoded; they do not count.
    """

    images: int
    top1: float
    top5: float
    images_per_second: float
    decode_seconds: float
    unreadable: list[str]


def evaluate_models(
    models: Mapping[str, nn.Module],
    images: ValidationImages,
    *,
    device: torch.device,
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, EvaluationResult]:
    """Evaluate several models in one pass over the images, in float32.

    Args:
        models: by name; on `device`. Their training mode is restored afterwards.
        images: what to evaluate on.
        device: where the models are.
        batch_size: images in a batch.
        workers: decoding processes.
        progress: called with the images seen so far and their total.

    Raises:
        ClusterqError: not one image can be read.
    """
    loader = DataLoader(images, batch_size=batch_size, num_workers=workers, collate_fn=images.collate)
    modes = {name: model.training for name, model in models.items()}
    correct = {name: torch.zeros(2, dtype=torch.long, device=device) for name in models}
    network_seconds = dict.fromkeys(models, 0.0)
    unreadable: list[str] = []
    count, decode_seconds = 0, 0.0
    mark = time.monotonic()
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for batch in loader:
            unreadable += batch.unreadable
            count += len(batch.labels)
            decode_seconds += time.monotonic() - mark
            if len(batch.labels):
                pixels, labels = batch.pixels.to(device), batch.labels.to(device)
                inputs = normalise(pixels, images.spec).contiguous(memory_format=torch.channels_last)
                for name, model in models.items():
                    begin = _now(device)
                    correct[name] += _hits(model.eval()(inputs), labels)
                    network_seconds[name] += _now(device) - begin
            if progress is not None:
                progress(count + len(unreadable), len(images))
            mark = time.monotonic()
    for name, model in models.items():
        model.train(modes[name])
    if not count:
        raise ClusterqError(
            f"--val: none of the {len(unreadable)} images in {images.root} can be read (the first is {unreadable[0]}), expected "
            "image files; check the folder."
        )
    return {
        name: EvaluationResult(
            images=count,
            top1=100 * int(hits[0]) / count,
            top5=100 * int(hits[1]) / count,
            images_per_second=count / max(network_seconds[name], 1e-9),
            decode_seconds=decode_seconds,
            unreadable=unreadable,
        )
        for name, hits in correct.items()
    }


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels are first, and among the first five; (2,) int64."""
    first = logits.float().topk(min(TOP, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([first[:, 0].sum(), first.any(1).sum()])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
