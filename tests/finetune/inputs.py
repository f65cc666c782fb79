"""Inputs of networks that real images are prepared for."""

from clusterq_common.teacher.spec import InputSpec

SMALL = InputSpec(size=8, channels=3, num_classes=3, mean=(0.5,) * 3, std=(0.5,) * 3)
IMAGENET = InputSpec(size=224, channels=3, num_classes=1000, mean=(0.5,) * 3, std=(0.5,) * 3)
