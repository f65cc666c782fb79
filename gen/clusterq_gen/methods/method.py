"""Definition of a method: weighted loss terms for each phase, and the objective of the in-loop student."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from clusterq_common.distill.objective import Objective
from clusterq_gen.losses.batch import StepBatch


@dataclass(frozen=True)
class Term:
    """One weighted loss of the generator.

    Attributes:
        warmup: the term is also used before centroids and student exist.
        centroids: the term uses class features and centroids.
        student: the term uses the student's logits.
    """

    name: str
    weight: float
    loss: Callable[[StepBatch], Tensor]
    warmup: bool = False
    centroids: bool = False
    student: bool = False


@dataclass(frozen=True)
class Method:
    """A data-free method: the generator's terms and the in-loop student's objective."""

    name: str
    terms: tuple[Term, ...]
    student: Objective

    def generator_terms(self, batch: StepBatch, *, warmup: bool) -> dict[str, Tensor]:
        """Return the weighted terms by name, scalars; their sum is the generator's loss. Terms of weight zero are not computed."""
        return {term.name: term.weight * term.loss(batch) for term in self.terms if term.weight and (term.warmup or not warmup)}

    @property
    def needs_centroids(self) -> bool:
        """True where a computed term uses class centroids."""
        return any(term.weight and term.centroids for term in self.terms)

    @property
    def needs_student(self) -> bool:
        """True where a computed term uses the student's logits, which costs another forward pass in the generator's step."""
        return any(term.weight and term.student for term in self.terms)
