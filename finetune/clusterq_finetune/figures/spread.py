"""Statistics of vectors by class: the nearest class mean, and the distances within a class."""

from typing import Any

import numpy as np
import torch

from clusterq_report.measure.within_classes import around_class_means

Array = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def nearest_own_class(values: Array, labels: Ints, centres: Array, centre_labels: Ints) -> float:
    """Return the percentage of `values` whose nearest class mean of `centres` is their own class's, by Euclidean distance.

    Where both are the same array, a vector is left out of its own class's mean, because few images would otherwise look better than
    they are. The only vector of a class is then not counted.

    Args:
        values, centres: (N, C) and (M, C).
        labels, centre_labels: (N,) and (M,); every class of `labels` is among `centre_labels`.
    """
    classes, row = np.unique(centre_labels, return_inverse=True)
    counts = np.bincount(row).astype(np.float64)
    sums = np.zeros((len(classes), centres.shape[1]))
    np.add.at(sums, row, centres)
    means = sums / counts[:, None]
    apart = np.stack([np.square(values - mean).sum(1) for mean in means], axis=1)
    own = np.searchsorted(classes, labels)
    if values is centres:
        rest = np.maximum(counts - 1, 1)[own][:, None]
        without = (sums[own] - values) / rest
        apart[np.arange(len(values)), own] = np.square(values - without).sum(1)
        counted = counts[own] > 1
        apart, own = apart[counted], own[counted]
    return 100 * float((apart.argmin(1) == own).mean()) if len(own) else float("nan")


def within_class_spread(values: Array, labels: Ints) -> Array:
    """Return, by class, (classes,): the root of the unbiased within-class variance, mean over channels; NaN for a single image."""
    variances: Array = around_class_means(torch.from_numpy(values), torch.from_numpy(labels)).variances().numpy()
    return np.asarray(np.sqrt(variances.mean(1)))


def within_class_distances(values: Array, labels: Ints) -> Array:
    """Return the distances between all pairs of each class: root mean square over the columns of `values`, (pairs,)."""
    distances = []
    for label in np.unique(labels):
        own = values[labels == label]
        distances += [np.sqrt(np.square(own[place + 1 :] - own[place]).mean(1)) for place in range(len(own) - 1)]
    return np.concatenate(distances) if distances else np.zeros(0)
