"""Predictions image by image, with confidences, for paired comparisons and spreadsheets."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_common.errors import ClusterqError
from clusterq_common.escape import csv_cell
from clusterq_common.files import atomic_write, need_place
from clusterq_common.setting_names import setting_name

TOP = 5
Array = np.ndarray[Any, np.dtype[Any]]


class Predictions:
    """Collects labels and predictions image by image, over the batches of an evaluation and over processes.

    Args:
        probabilities: also keep the probability of every class.
    """

    def __init__(self, *, probabilities: bool = False) -> None:
        self.probabilities = probabilities
        self.names: list[str] = []
        # By the names of the arrays that are written: parts of one batch each.
        self._parts: dict[str, list[Array]] = {}

    def add(self, names: list[str], labels: Tensor, logits: dict[str, Tensor]) -> None:
        """Keep one batch: names, labels (N,), and by model the logits (N, classes)."""
        self.names += names
        self._keep("label", labels.to(torch.int32))
        for model, given in logits.items():
            values = given.float()
            probabilities = values.softmax(1)
            # The class named is argmax's, as in the figures: of equal logits topk may name another first.
            self._keep(model, values.argmax(1).to(torch.int32))
            classes = values.topk(min(TOP, values.shape[1]), dim=1).indices
            self._keep(f"{model}_top5_classes", classes.to(torch.int32))
            self._keep(f"{model}_top5_probabilities", probabilities.gather(1, classes))
            if self.probabilities:
                self._keep(f"{model}_probabilities", probabilities)

    def merged(self) -> dict[str, Array]:
        """All processes' arrays, `name` and `label` among them, sorted by name. A collective call."""
        own = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        parts = Ranks.current().gather((self.names, own))
        names = np.array([name for part, _ in parts for name in part])
        order = np.argsort(names, kind="stable")
        keys = sorted({key for _, arrays in parts for key in arrays})
        joined = {key: np.concatenate([arrays[key] for _, arrays in parts if key in arrays])[order] for key in keys}
        return {"name": names[order], **joined}

    def save(self, path: Path) -> None:
        """Write all processes' predictions as an .npz; every process has to call it."""
        save_npz(path, self.merged())

    def _keep(self, name: str, values: Tensor) -> None:
        self._parts.setdefault(name, []).append(values.cpu().numpy())


def save_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write an .npz of predictions, in the first process.

    Its arrays are `name`, `label`, and for each model the classes that it names and its probabilities.
    """
    if Ranks.current().first:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        atomic_write(path, buffer.getvalue())


def save_csv(path: Path, arrays: dict[str, Array]) -> None:
    """Write a CSV with one line an image, in the first process.

    Its columns are name, label, and for each model the predicted class and its probability.
    """
    if not Ranks.current().first:
        return
    models = [key for key in arrays if f"{key}_top5_probabilities" in arrays]
    heads = ["name", "label"]
    for model in models:
        heads += [f"{model}_class", f"{model}_confidence"]
    columns: list[list[str]] = [[csv_cell(name) for name in arrays["name"].tolist()], _texts(arrays["label"])]
    for model in models:
        confidence = [f"{value:.6f}" for value in arrays[f"{model}_top5_probabilities"][:, 0].tolist()]
        columns += [_texts(arrays[model]), confidence]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(zip(*columns, strict=True))
    atomic_write(path, buffer.getvalue())


def _texts(values: Array) -> list[str]:
    return [str(value) for value in values.tolist()]


@dataclass(frozen=True)
class KeptPredictions:
    """Files that a command keeps its predictions in.

    Attributes:
        probabilities: in the .npz also those of every class, not of the five best alone.
        csv: a table to write; none if left out.
        npz: the .npz of a command that has no run folder for it; none if left out.
    """

    probabilities: bool = False
    csv: Path | None = None
    npz: Path | None = None

    def need(self, val: Path | None) -> None:
        """Make sure, before any work, that there are images to predict and places to write to.

        Raises:
            ClusterqError: there are no real images, or a path cannot be written.
        """
        for setting, path in (("predictions_csv", self.csv), ("predictions", self.npz)):
            need_place(setting, path)
        if val is None and (self.probabilities or self.csv is not None):
            val_name = setting_name("val")
            raise ClusterqError(
                f"there is no {val_name}, expected real images to predict; pass {val_name}, or leave it out.",
                setting="probabilities" if self.probabilities else "predictions_csv",
            )

    def collector(self) -> Predictions:
        """Return an empty store for an evaluation's predictions."""
        return Predictions(probabilities=self.probabilities)

    def save(self, predictions: Predictions, npz: Path | None) -> None:
        """Write what is asked for; every process has to call it."""
        arrays = predictions.merged()
        if npz is not None:
            save_npz(npz, arrays)
        if self.csv is not None:
            save_csv(self.csv, arrays)


NOTHING_MORE = KeptPredictions()
