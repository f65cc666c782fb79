"""Terms of a loss, by the names that runs record: what each is, and whether its values can be."""

from collections.abc import Iterable, Mapping
from typing import Any

from clusterq_common.quantities import count, number, without_rounding_below_zero
from clusterq_common.setting_names import setting_name
from clusterq_report.html.blocks import Folded, Table
from clusterq_report.html.page import Remark
from clusterq_report.run_data import Points, real

GENERATOR = {
    "class": "cross-entropy: the teacher is to name the class that an image was made for",
    "bns": "the batch's BatchNorm statistics are to be those stored in the teacher",
    "fda": "feature distribution alignment: each class's statistics in deep layers are to be at its centroid",
    "de": "diversity enhancement: each image's are to be at a random place around that centroid",
    "spread": "penalty where images of one class are too similar",
    "agreement": "teacher and student are both to name the class (AdaDFQ)",
    "disagreement": "the teacher is to name the class and the student is not (AdaDFQ)",
    "boundary": "keeps the disagreement of teacher and student between two bounds (AdaDFQ)",
    "emphasis": "BatchNorm statistics again, each image with most weight on one layer (DSG)",
    "input": "mean and std of the pixels are to be those of the training data, as the teacher's normalisation has them (ZeroQ)",
    "margin": "features of a class's images are to be neither too near to their mean nor too far from it (IntraQ)",
}
STUDENT = {
    "ce": "cross-entropy of the student with the image's label",
    "kl": "T² KL(teacher || student): the student is to give the teacher's probabilities at temperature T",
    "entropy": "minus T² times the entropy of the difference of the logits: least where teacher and student agree (AdaDFQ)",
    "features": "the output of each block is to be the teacher's",
}


def legend(names: Iterable[str], meanings: dict[str, str]) -> list[Folded]:
    """Return a table with the meaning of each of these terms; empty without any."""
    rows = [[name, meanings.get(name, "a term of the method's own")] for name in names]
    return [Folded("What the terms are", [Table(["term", "meaning"], rows, words=2)])] if rows else []


def not_finite(losses: Mapping[str, Points]) -> list[Remark]:
    """Return a warning where values of these losses are missing because they were not finite."""
    missing = sum(y is None for points in losses.values() for _, y in points)
    sentence = f"{count(missing, 'loss value is', 'loss values are')} not finite: the training went astray; try a smaller {setting_name('lr')}."
    return [Remark("warning", sentence)] if missing else []


def from_zero(kl: Points, settings: Mapping[str, Any], *, weighted: bool = True) -> Points:
    """Return recorded KL divergences without what only rounding made negative.

    Args:
        kl: as recorded.
        settings: the section of config.yaml with the temperature and the weight of the KL.
        weighted: whether the record holds the KL times its weight.
    """
    unit = (real(settings.get("temperature")) or 1.0) ** 2 * ((real(settings.get("kl_weight")) or 1.0) if weighted else 1.0)
    return [(x, None if y is None else without_rounding_below_zero(y, unit)) for x, y in kl]


def negative(*kl: Points) -> list[Remark]:
    """Return a warning where a KL divergence is really negative."""
    negative = [y for points in kl for _, y in points if y is not None and y < 0]
    sentence = f"A KL divergence of {number(min(negative, default=0.0))} is on record, which cannot be: the program or the record is at fault."
    return [Remark("warning", sentence)] if negative else []
