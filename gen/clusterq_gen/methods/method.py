"""What a method is: which loss terms at which weight, in which phase, and what the in-loop student minimises."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from clusterq_common.distill.objective import Objective
from clusterq_gen.losses.batch import StepBatch


@dataclass(frozen=True)
class Term:
    """One weighted loss of the generator.

    Attributes:
        warmup: it takes part before centroids and student exist, too.
        centroids: it looks at class features and centroids.
        student: it looks at the student's logits.
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
        """Weighted terms by name, scalars; their sum is the generator's loss. A term of weight zero is not computed."""
        return {term.name: term.weight * term.loss(batch) for term in self.terms if term.weight and (term.warmup or not warmup)}

    @property
    def needs_centroids(self) -> bool:
        """Whether any term that is computed looks at class centroids."""
        return any(term.weight and term.centroids for term in self.terms)

    @property
    def needs_student(self) -> bool:
        """Whether any term that is computed looks at the student's logits: another forward pass in the generator's step."""
        return any(term.weight and term.student for term in self.terms)
