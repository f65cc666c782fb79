"""Many channels as two: PCA and t-SNE, the same on every call."""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from clusterq_common.errors import ClusterqError
from clusterq_finetune.figures.config import FeaturesConfig
from clusterq_finetune.figures.spread import Array


@dataclass(frozen=True)
class Projection:
    """Points on a plane, (N, 2), and what is on its axes, as text; empty for axes that mean nothing."""

    points: Array
    axes: tuple[str, str] = ("", "")


def project(values: Array, config: FeaturesConfig, layer: str) -> Projection:
    """All images of one layer on one plane: none of the methods is told a label, or which images are real.

    Args:
        values: (N, C).
        config: which method.
        layer: its name, for errors.

    Raises:
        ClusterqError: too few images or channels.
    """
    # Sums in another order, as several threads make them, would end in another picture.
    with threadpool_limits(1):
        found = _pca(values, layer) if config.projection == "pca" else _tsne(values, config, layer)
    # Last digits depend on where in memory things lay.
    return Projection(found.points.round(6), found.axes)


def _pca(values: Array, layer: str) -> Projection:
    """The two directions of most variance, in the units of `values`; the axes say which share of it they have."""
    if min(values.shape) < 2:
        raise ClusterqError(
            f"--layers: {layer} has {values.shape[1]} channels for {values.shape[0]} images, expected two of both at least; choose another."
        )
    pca = PCA(n_components=2, svd_solver="full")
    points = np.asarray(pca.fit_transform(values), dtype=np.float64)
    first, second = (f"PC {number} ({100 * share:.0f} %)" for number, share in enumerate(pca.explained_variance_ratio_, 1))
    return Projection(points, (first, second))


def _tsne(values: Array, config: FeaturesConfig, layer: str) -> Projection:
    """Van der Maaten and Hinton, 2008. Started from PCA, which needs no draw: what is far apart is not put together by chance."""
    if config.perplexity >= len(values):
        raise ClusterqError(
            f"--perplexity: found {config.perplexity:g} for {len(values)} images, expected less than their number, a third at most for "
            "a picture that says something; lower it, or show more images with --per-class."
        )
    # As scikit-learn scales its own start from PCA.
    start = _pca(values, layer).points if config.seed is None else "random"
    start = start if isinstance(start, str) else start / (start[:, 0].std() or 1.0) * 1e-4
    tsne = TSNE(perplexity=config.perplexity, init=start, learning_rate="auto", random_state=config.seed)
    return Projection(np.asarray(tsne.fit_transform(values), dtype=np.float64))
