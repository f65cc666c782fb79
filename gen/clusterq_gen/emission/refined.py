"""A generator's images, optimised before the teacher judges them: their BatchNorm statistics come near the stored ones."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.cuda_graph import Recorder
from clusterq_common.device.distributed import Ranks
from clusterq_common.errors import ClusterqError
from clusterq_common.images import normalise
from clusterq_common.progress.console import info
from clusterq_common.run.environment import device_name, versions
from clusterq_common.shards.manifest import SplitName
from clusterq_common.teacher.load import Teacher
from clusterq_gen.bank.files import is_finished, read_pixels, write_batch
from clusterq_gen.bank.optimise import NotFiniteError, Optimiser
from clusterq_gen.config import EmitConfig
from clusterq_gen.emission.candidate_source import CandidateSource
from clusterq_gen.emission.journal import scratch
from clusterq_gen.emission.shard_plan import ShardPlan
from clusterq_gen.training.latent import classes_in_batch


class RefinedCandidates:
    """The candidates of another source, each batch of them optimised together: ZeroQ's loss, started where the generator ends.

    An image depends on those in its batch, so which candidates share one is a function of their class and attempt alone
    (`Batches`). A batch is made when the first of its images is wanted and kept in a file, so that an interrupted emission
    goes on, and a batch whose images are wanted in turn is made once.

    Attributes:
        digest: the other source's.

    Args:
        source: what is refined.
        optimiser: how; where its class weight is 0, no class is asked for.
        batch_size: candidates in a batch.
        folder: where batches are kept.
        identity: everything else that they depend on.
    """

    def __init__(
        self, source: CandidateSource, optimiser: Optimiser, batch_size: int, folder: Path, identity: dict[str, object]
    ) -> None:
        self._source, self._optimiser, self._folder = source, optimiser, folder
        self.digest = source.digest
        self._batches = Batches(optimiser.teacher.spec.num_classes, batch_size)
        values = {**identity, "refine": optimiser.bank.model_dump(mode="json"), "batch": batch_size}
        self._made = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def block(self, split: SplitName, number: int, slots: range, num_classes: int) -> ShardPlan:
        return self._source.block(split, number, slots, num_classes)

    def images(self, tries: list[tuple[int, int]]) -> Tensor:
        spec = self._optimiser.teacher.spec
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for place, one in enumerate(tries):
            batch, row = self._batches.find(*one)
            wanted.setdefault(batch, []).append((place, row))
        pixels = torch.empty(len(tries), spec.channels, spec.size, spec.size, dtype=torch.uint8)
        for batch, found in wanted.items():
            path = self._finished(*batch)
            pixels[[place for place, _ in found]] = read_pixels(path, [row for _, row in found])
        return normalise(pixels.to(self._optimiser.device), spec)

    def _finished(self, group: int, turn: int) -> Path:
        """The file of a batch, made where it is not there yet."""
        path = self._folder / f"{group:04d}-{turn:013d}.safetensors"
        if not is_finished(path, self._made):
            tries = self._batches.tries(group, turn)
            start = self._source.images(tries)
            labels = torch.tensor([label for label, _ in tries]) if self._optimiser.bank.labelled else None
            # Unlike any other batch's: what steps draw at random is keyed by it.
            number = turn * self._batches.groups + group
            try:
                batch = self._optimiser.optimise(start, labels, number)
            except NotFiniteError as error:
                raise ClusterqError(
                    f"--refine-steps: {error}, expected finite ones; shards that are finished are kept: try a smaller --refine-lr."
                ) from error
            write_batch(path, batch, self._made)
        return path


@dataclass(frozen=True)
class Batches:
    """Which candidates are refined together: so many of each of some classes, with attempts that follow each other.

    Args:
        num_classes: of the teacher.
        batch_size: candidates in a batch, at most.
    """

    num_classes: int
    batch_size: int

    @property
    def classes(self) -> int:
        """Classes in a batch, one group of them; the last group may have fewer."""
        return classes_in_batch(self.num_classes, self.batch_size, None)

    @property
    def groups(self) -> int:
        """Groups of classes."""
        return -(-self.num_classes // self.classes)

    def find(self, label: int, attempt: int) -> tuple[tuple[int, int], int]:
        """A candidate's batch (group of classes, turn) and its place in there."""
        group = label // self.classes
        members, each = self._shape(group)
        turn, place = divmod(attempt, each)
        return (group, turn), place * members + label - group * self.classes

    def tries(self, group: int, turn: int) -> list[tuple[int, int]]:
        """The (label, attempt) pairs of a batch, in order: `find`'s inverse."""
        members, each = self._shape(group)
        first = group * self.classes
        return [(first + label, turn * each + place) for place in range(each) for label in range(members)]

    def _shape(self, group: int) -> tuple[int, int]:
        """Classes of a group, and candidates of each in a batch."""
        members = min(self.classes, self.num_classes - group * self.classes)
        return members, self.batch_size // members


def refined(
    source: CandidateSource,
    emit: EmitConfig,
    runtime: RuntimeConfig,
    teacher: Teacher,
    shards: Path,
    recorder: Recorder | None = None,
) -> CandidateSource:
    """`source` with its images refined as the settings say, or as it is where they say nothing.

    Args:
        shards: the folder they are for; batches lie in its scratch folder until its manifest is written. Each process has its own: two may
            want the same batch, and must not write one file.
        recorder: where steps are recorded and replayed. The images are the same, so it is no part of what they depend on.
    """
    bank = emit.refinement
    if bank is None:
        return source
    folder = scratch(shards) / str(Ranks.current().rank)
    info(f"refinement: {emit.refine_steps} steps for each {emit.refine_batch} candidates")
    device = next(teacher.model.parameters()).device
    identity = {
        "source": source.digest,
        "seed": runtime.seed,
        "teacher": teacher.digest,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "amp": runtime.amp,
        "versions": versions(),
    }
    optimiser = Optimiser.start(bank, runtime, teacher, device, recorder)
    return RefinedCandidates(source, optimiser, emit.refine_batch, folder, identity)
