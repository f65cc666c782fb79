"""Speed of a classifier on this machine, and times of work that are estimated from it."""

import time

import torch

from clusterq_common.teacher.load import Teacher

# Images in a measured pass, and the longest time that measuring takes.
IMAGES, SECONDS = 8, 1.0
# An estimate is off by what the machine does besides, by caches, and by what is not counted.
LEAST, MOST = 0.5, 2.0
FEW = 10.0


def seconds_per_image(teacher: Teacher, device: torch.device) -> float:
    """Return the seconds that a forward and backward pass to the image takes for each image, the fastest of a few passes."""
    images = teacher.spec.example(IMAGES).to(device).requires_grad_(True)
    fastest, end = float("inf"), time.perf_counter() + SECONDS
    while True:
        begin = time.perf_counter()
        torch.autograd.grad(teacher.model(images).sum(), images)[0].sum().item()  # waits for a GPU
        fastest = min(fastest, time.perf_counter() - begin)
        if time.perf_counter() > end:
            return fastest / IMAGES


def rough_duration(seconds: float) -> str:
    """Return an estimate in words.

    >>> rough_duration(2), rough_duration(20), rough_duration(600), rough_duration(36000)
    ('a few seconds', '10 to 40 seconds', '5 to 20 minutes', '5 to 20 hours')
    """
    if seconds < FEW:
        return "a few seconds"
    unit, name = next(
        (unit, name)
        for unit, name in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
        if LEAST * seconds >= unit or unit == 1
    )
    low, high = (max(1, round(share * seconds / unit)) for share in (LEAST, MOST))
    return f"{low} to {high} {name}"
