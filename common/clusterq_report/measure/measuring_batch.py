"""Number of images that go through the networks together in measurements."""

from clusterq_common.teacher.spec import InputSpec

SMALL_BATCH, LARGE_BATCH = 128, 16


def measuring_batch(spec: InputSpec) -> int:
    """Return the number of images in a batch, without gradients: 128 small ones or 16 larger ones."""
    return SMALL_BATCH if spec.small else LARGE_BATCH
