"""The in-loop student of a training that is only timed."""

import torch

from clusterq_common.quant.calibrate import calibrate
from clusterq_common.taps import BatchNormTaps
from clusterq_gen.training.state import Training


def join_student(run: Training, taps: BatchNormTaps) -> None:
    """Give a training student and centroids, so that its next steps are as costly as those after warm-up.

    Unlike those of `Training.end_warmup` they come from one batch, and ranges are not searched: steps take as long, and their values do
    not count.

    Args:
        run: a training that is discarded afterwards.
        taps: of its teacher.
    """
    run.add_student(lambda _: None, search=False)
    assert run.student is not None
    run.draws.begin(run.step)
    with torch.no_grad():
        latent = run.inputs(mixed=False)
        images = run.generator(latent.z, latent.labels)
        run.teacher.model(images)
        if run.method.needs_centroids:
            run.add_centroids(taps)
            assert run.centroids is not None
            every = torch.ones_like(latent.labels, dtype=torch.bool)
            run.centroids.update(run.centroids.layers.statistics(taps, latent.groups, every), 1.0)
    taps.moments.clear()
    calibrate(
        run.student, [images.cpu()], run.config.quant.model_copy(update={"range": "minmax"}), seed=run.config.runtime.seed
    )
