"""Predicted class of each model for each real image, for paired comparisons."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_common.files import atomic_write


class Predictions:
    """Collector of labels and predicted classes by image, over the batches of an evaluation and over processes."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.classes: dict[str, list[int]] = {"label": []}

    def add(self, names: list[str], labels: Tensor, predicted: dict[str, Tensor]) -> None:
        """Add one batch: names, labels (N,), and the predicted classes (N,) by model."""
        self.names += names
        for model, values in {"label": labels, **predicted}.items():
            self.classes.setdefault(model, []).extend(values.tolist())

    def save(self, path: Path) -> None:
        """Write all processes' predictions, sorted by name, as an .npz of `name`, `label` and one array a model.

        Only the first process writes.
        """
        parts = Ranks.current().gather((self.names, self.classes))
        if not Ranks.current().first:
            return
        names = np.array([name for own, _ in parts for name in own])
        order = np.argsort(names, kind="stable")
        models = {model for _, classes in parts for model in classes}
        arrays: dict[str, Any] = {
            m: np.array([c for _, classes in parts for c in classes.get(m, [])], np.int32)[order] for m in sorted(models)
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, name=names[order], **arrays)
        atomic_write(path, buffer.getvalue())
