"""One number that compares sets of one teacher (docs/shard-quality.md says how well it ranks them). Free of torch."""

import math

from clusterq_report.quality.findings import ImageFigures, Quality


def batchnorm_distance(figures: ImageFigures) -> float:
    """Return the mean over layers of the distance in mean and std together, sqrt(mean^2 + std^2), in running stds."""
    return sum(math.hypot(layer.mean, layer.std) for layer in figures.batchnorm) / len(figures.batchnorm)


def balance(quality: Quality) -> float:
    """Return exp(entropy of the labels' shares) over the number of classes: 1 if all classes have equally many images."""
    counts = [class_figures.images for class_figures in quality.per_class]
    shares = [count / sum(counts) for count in counts if count]
    return math.exp(-sum(share * math.log(share) for share in shares)) / (len(counts) + len(quality.missing))


def score(quality: Quality) -> float:
    """Return balance x agreement x (1 - BatchNorm distance over that of noise), from 0 to 1; 0 where the set is no nearer than noise."""
    own, noise = quality.sources["set"], quality.sources["noise"]
    distance, of_noise = batchnorm_distance(own), batchnorm_distance(noise)
    near = 1 - distance / of_noise if distance < of_noise else 0.0
    return balance(quality) * own.agreement * near
