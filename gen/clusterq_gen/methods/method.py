"""What a method is: which loss terms at which weight, in which phase, and what the in-loop student minimises."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from clusterq_common.distill.objective import StudentObjective
from clusterq_gen.losses.batch import StepBatch


@dataclass(frozen=True)
class Term:
    """One weighted loss of the generator. `warmup`: it takes part before centroids and student exist, too."""

    name: str
    weight: float
    loss: Callable[[StepBatch], Tensor]
    warmup: bool = False


@dataclass(frozen=True)
class Method:
    """A data-free method: the generator's terms and the in-loop student's objective."""

    name: str
    terms: tuple[Term, ...]
    student: StudentObjective

    def generator_terms(self, batch: StepBatch, *, warmup: bool) -> dict[str, Tensor]:
        """Weighted terms by name, scalars; their sum is the generator's loss. A term of weight zero is not computed."""
        return {term.name: term.weight * term.loss(batch) for term in self.terms if term.weight and (term.warmup or not warmup)}

    @property
    def needs_centroids(self) -> bool:
        """Whether any term looks at class centroids (every term that waits for the end of warm-up does)."""
        return any(term.weight and not term.warmup for term in self.terms)
