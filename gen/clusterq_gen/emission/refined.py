"""Refinement: a generator's images, optimised towards the stored BatchNorm statistics before the teacher accepts them."""

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
from clusterq_common.images.normalise import normalise
from clusterq_common.progress.console import info
from clusterq_common.run.environment import device_name, versions
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.manifest import SplitName
from clusterq_common.teacher.load import Teacher
from clusterq_gen.bank.files import is_finished, read_pixels, write_batch
from clusterq_gen.bank.optimise import NotFiniteError, Optimiser
from clusterq_gen.config import EmitConfig
from clusterq_gen.emission.candidate_source import CandidateSource
from clusterq_gen.emission.journal import scratch
from clusterq_gen.emission.shard_plan import ShardPlan


class RefinedCandidates:
    """Candidates of another source, optimised in batches with ZeroQ's loss, starting from the generator's images.

    An image depends on the others in its batch. So the candidates of a batch are determined by class and attempt alone
    (`Batches`). A batch is made when the first of its images is wanted, and kept in a file. So an interrupted emission
    continues, and each batch is made once even if its images are wanted one after another.

    Attributes:
        digest: digest of the other source.

    Args:
        source: source of the candidates to refine.
        optimiser: optimiser of the images. Where its class weight is 0, no class is requested.
        batch_size: candidates in a batch.
        folder: folder of the finished batches.
        identity: everything else that the batches depend on.
    """

    def __init__(
        self, source: CandidateSource, optimiser: Optimiser, batch_size: int, folder: Path, identity: dict[str, object]
    ) -> None:
        self._source, self._optimiser, self._folder = source, optimiser, folder
        self.digest = source.digest
        self._batches = Batches(optimiser.teacher.spec.num_classes, batch_size)
        values = {**identity, "refine": optimiser.bank.model_dump(mode="json"), "batch": batch_size}
        values["classes"] = self._batches.classes
        self._made = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def plan(self, split: SplitName, number: int, slots: range, num_classes: int) -> ShardPlan:
        return self._source.plan(split, number, slots, num_classes)

    def images(self, tries: list[tuple[int, int]]) -> Tensor:
        spec = self._optimiser.teacher.spec
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for place, candidate in enumerate(tries):
            batch, row = self._batches.find(*candidate)
            wanted.setdefault(batch, []).append((place, row))
        pixels = torch.empty(len(tries), *spec.shape, dtype=torch.uint8)
        for batch, places in wanted.items():
            path = self._finished(*batch)
            pixels[[place for place, _ in places]] = read_pixels(path, [row for _, row in places])
        return normalise(pixels.to(self._optimiser.device), spec)

    def _finished(self, group: int, turn: int) -> Path:
        """Return the file of a batch, and make it if it is missing."""
        path = self._folder / f"{group:04d}-{turn:013d}.safetensors"
        if not is_finished(path, self._made):
            tries = self._batches.tries(group, turn)
            start = self._source.images(tries)
            labels = torch.tensor([label for label, _ in tries]) if self._optimiser.bank.labelled else None
            # Unique to the batch, because it keys the random draws of the steps.
            number = turn * self._batches.groups + group
            try:
                batch = self._optimiser.optimise(start, labels, number)
            except NotFiniteError as error:
                raise ClusterqError(
                    f"{error}, expected finite ones; shards that are finished are kept: try a smaller {setting_name('refine_lr')}.",
                    setting="refine_steps",
                ) from error
            write_batch(path, batch, self._made)
        return path


@dataclass(frozen=True)
class Batches:
    """Assignment of candidates to batches: equally many of each of some classes, with consecutive attempts.

    Args:
        num_classes: number of the teacher's classes.
        batch_size: candidates in a batch, at most.
    """

    num_classes: int
    batch_size: int

    @property
    def classes(self) -> int:
        """Number of classes in a batch, which form a group; the last group may have fewer.

        As many as fit: the stored statistics are those of all classes, and no image is made of a class that wants few.
        """
        return -(-self.num_classes // -(-self.num_classes // self.batch_size))

    @property
    def groups(self) -> int:
        """Number of groups of classes."""
        return -(-self.num_classes // self.classes)

    def find(self, label: int, attempt: int) -> tuple[tuple[int, int], int]:
        """Return a candidate's batch (group of classes, turn) and its position in the batch."""
        group = label // self.classes
        members, each = self._shape(group)
        turn, place = divmod(attempt, each)
        return (group, turn), place * members + label - group * self.classes

    def tries(self, group: int, turn: int) -> list[tuple[int, int]]:
        """Return the (label, attempt) pairs of a batch, in order. This is the inverse of `find`."""
        members, each = self._shape(group)
        first = group * self.classes
        return [(first + label, turn * each + place) for place in range(each) for label in range(members)]

    def candidates(self, wanted: int) -> int:
        """Return how many candidates whole batches have that give `wanted` of each class."""
        shapes = map(self._shape, range(self.groups))
        return sum(members * each * -(-wanted // each) for members, each in shapes)

    def _shape(self, group: int) -> tuple[int, int]:
        """Return the number of classes of a group, and of candidates of each class in a batch."""
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
    """Return `source` with its images refined as the settings say, or `source` itself without refinement.

    Args:
        shards: folder of the shards. Batches lie in its scratch folder until its manifest is written. Each process has its own,
            because two may need the same batch and must not write one file.
        recorder: records and replays the steps. The images do not depend on it.
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
