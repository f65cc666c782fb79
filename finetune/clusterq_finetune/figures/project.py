"""Projection to two dimensions with PCA and t-SNE, the same on every call."""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name
from clusterq_finetune.figures.config import FeaturesConfig
from clusterq_finetune.figures.spread import Array


@dataclass(frozen=True)
class Projection:
    """Points in two dimensions, (N, 2), and the labels of the axes; empty for axes without meaning."""

    points: Array
    axes: tuple[str, str] = ("", "")


def project(values: Array, config: FeaturesConfig, layer: str) -> Projection:
    """Project all images of one layer to two dimensions. No method uses a label, or knows which images are real.

    Args:
        values: (N, C).
        config: settings of the projection.
        layer: name of the layer, for errors.

    Raises:
        ClusterqError: too few images or channels.
    """
    # Several threads add in another order, which would give another picture.
    with threadpool_limits(1):
        projection = _pca(values, layer) if config.projection == "pca" else _tsne(values, config, layer)
    # The last digits depend on memory addresses.
    return Projection(projection.points.round(6), projection.axes)


def _pca(values: Array, layer: str) -> Projection:
    """Return the two directions of most variance, in the units of `values`. The axes state their share of it."""
    if min(values.shape) < 2:
        raise ClusterqError(
            f"{layer} has {values.shape[1]} channels for {values.shape[0]} images, expected two of both at least; choose another.",
            setting="layers",
        )
    pca = PCA(n_components=2, svd_solver="full")
    points = np.asarray(pca.fit_transform(values), dtype=np.float64)
    first, second = (f"PC {number} ({100 * share:.0f} %)" for number, share in enumerate(pca.explained_variance_ratio_, 1))
    return Projection(points, (first, second))


def _tsne(values: Array, config: FeaturesConfig, layer: str) -> Projection:
    """Return the t-SNE of van der Maaten and Hinton, 2008.

    By default it starts from PCA, which is not random: distant points are not placed together by chance.
    """
    if config.perplexity >= len(values):
        raise ClusterqError(
            f"found {config.perplexity:g} for {len(values)} images, expected less than their number, a third at most for "
            f"a picture that says something; lower it, or show more images with {setting_name('per_class')}.",
            setting="perplexity",
        )
    # Scaled as scikit-learn scales its own start from PCA.
    start = _pca(values, layer).points if config.seed is None else "random"
    start = start if isinstance(start, str) else start / (start[:, 0].std() or 1.0) * 1e-4
    tsne = TSNE(perplexity=config.perplexity, init=start, learning_rate="auto", random_state=config.seed)
    return Projection(np.asarray(tsne.fit_transform(values), dtype=np.float64))
