"""Candidate images, and their acceptance as samples by the teacher."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from clusterq_common.images.normalise import normalise, pixel_bounds, to_array, to_pixels
from clusterq_common.images.png import Array
from clusterq_common.shards.digest import encode_samples
from clusterq_common.shards.sample import Sample
from clusterq_common.teacher.load import Teacher
from clusterq_gen.emission.candidate_source import CandidateSource
from clusterq_gen.emission.shard_plan import ShardPlan

# Networks round differently at other batch sizes. A fixed size makes an image independent of how many are wanted.
CHUNK = 64
# Chunks queued for each encoding process.
QUEUED = 4


@dataclass
class EmissionCounts:
    """Counts over candidates, for the manifest.

    Attributes:
        rejected: by requested class, dropped candidates. The teacher assigned them to another class, or to one that had enough.
        candidates, agreed: number of candidates drawn, and number of those in which the teacher saw the requested class.
        clipped: sum over candidates of the share of values at the end of the pixel range.
        short: by class, wanted images that its candidates did not yield.
    """

    rejected: list[int]
    short: list[int]
    candidates: int = 0
    agreed: int = 0
    clipped: float = 0.0

    @classmethod
    def nothing(cls, num_classes: int) -> "EmissionCounts":
        """Return counts that are all zero."""
        return cls([0] * num_classes, [0] * num_classes)

    def add(self, other: "EmissionCounts") -> None:
        """Add the counts of other candidates."""
        self.rejected = [a + b for a, b in zip(self.rejected, other.rejected, strict=True)]
        self.short = [a + b for a, b in zip(self.short, other.short, strict=True)]
        self.candidates += other.candidates
        self.agreed += other.agreed
        self.clipped += other.clipped


class Facts(NamedTuple):
    """Metadata of an accepted candidate: see `Sample`."""

    label: int
    asked: int
    attempt: int
    top1: int
    confidence: float


@dataclass
class Accepted:
    """Accepted candidates of one chunk, not yet encoded."""

    pixels: list[Array] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


class CandidateScheduler:
    """Order of the candidates: classes take turns, each with its own attempts.

    Attributes:
        need: images still wanted, by class; the caller counts down.
    """

    def __init__(self, plan: ShardPlan) -> None:
        self.need = list(plan.wanted)
        self._attempts, self._limit = list(plan.attempts), plan.limit
        self._at = 0

    def next_tries(self) -> list[tuple[int, int]]:
        """Return at most a chunk of (label, attempt), and never more of a class than it needs. Empty when all is done."""
        tries: list[tuple[int, int]] = []
        taken = [0] * len(self.need)
        idle = 0
        while len(tries) < CHUNK and idle < len(self.need):
            label = self._at
            self._at = (self._at + 1) % len(self.need)
            if taken[label] < self.need[label] and self._attempts[label] < self._limit[label]:
                tries.append((label, self._attempts[label]))
                self._attempts[label] += 1
                taken[label] += 1
                idle = 0
            else:
                idle += 1
        return tries


class Emitter:
    """Drawing of candidates and their conversion to samples.

    A candidate becomes a sample if the teacher agrees with its class. Where labels are the teacher's, every candidate becomes a
    sample of the class that the teacher sees, as long as that class needs images.

    Labels, logits and confidence are the teacher's on the eight-bit pixels of the PNG, which are the pixels that a student sees.
    Classes take turns, so that a shard read from its start is mixed.
    """

    def __init__(
        self,
        source: CandidateSource,
        teacher: Teacher,
        *,
        seed: int,
        labels: Literal["asked", "teacher"],
        keep_misclassified: bool,
        store_logits: bool,
        pool: Executor | None,
    ) -> None:
        self.source = source
        self.teacher = teacher
        self.seed = seed
        self.labels = labels
        self.keep_misclassified = keep_misclassified
        self.store_logits = store_logits
        self.pool = pool
        self.device = next(teacher.model.parameters()).device

    def samples(self, plan: ShardPlan, tally: EmissionCounts, done: Callable[[int], None]) -> Iterator[Sample]:
        """Yield the samples of one shard, until each class has as many as wanted or its candidates are used up.

        Encoding runs in the pool's processes, if there is one. The order of samples does not depend on it.

        Args:
            tally: updated with the counts of the drawn candidates.
            done: called with the number of samples of each chunk.
        """
        waiting: deque[tuple[Accepted, Future[list[tuple[bytes, bytes]]] | None]] = deque()
        processes = getattr(self.pool, "_max_workers", 0)
        for judged in self._judged(plan, tally):
            done(len(judged.facts))
            labels = [facts.label for facts in judged.facts]
            waiting.append((judged, self.pool.submit(encode_samples, labels, judged.pixels) if self.pool else None))
            while len(waiting) > QUEUED * processes:
                yield from self._finish(*waiting.popleft())
        while waiting:
            yield from self._finish(*waiting.popleft())

    def _finish(self, judged: Accepted, encoding: Future[list[tuple[bytes, bytes]]] | None) -> Iterator[Sample]:
        labels = [facts.label for facts in judged.facts]
        encoded = encoding.result() if encoding is not None else encode_samples(labels, judged.pixels)
        for (png, content), facts, logits in zip(encoded, judged.facts, judged.logits, strict=True):
            yield Sample(
                png=png,
                content=content,
                label=facts.label,
                asked=facts.asked,
                seed=self.seed,
                attempt=facts.attempt,
                teacher_top1=facts.top1,
                teacher_confidence=facts.confidence,
                logits=logits.half().numpy() if self.store_logits else None,
            )

    def _judged(self, plan: ShardPlan, tally: EmissionCounts) -> Iterator[Accepted]:
        """Yield the accepted candidates, one chunk at a time."""
        turns = CandidateScheduler(plan)
        while tries := turns.next_tries():
            judged = self._judge(tries, turns.need, tally)
            for facts in judged.facts:
                turns.need[facts.label] -= 1
            yield judged
        tally.short = [before + missing for before, missing in zip(tally.short, turns.need, strict=True)]

    @torch.no_grad()
    def _judge(self, tries: list[tuple[int, int]], need: list[int], tally: EmissionCounts) -> Accepted:
        """Return the accepted candidates, in order, and no more of a class than are needed."""
        spec = self.teacher.spec
        padded = tries + [tries[-1]] * (CHUNK - len(tries))
        images = self.source.images(padded).float()
        low, high = (bound.to(images.device) for bound in pixel_bounds(spec))
        tally.clipped += float(((images <= low) | (images >= high))[: len(tries)].float().mean()) * len(tries)
        # In this order an image's array for the encoder needs no copy on the host.
        pixels = to_pixels(images, spec).contiguous(memory_format=torch.channels_last)
        logits = self.teacher.model(normalise(pixels, spec).contiguous(memory_format=torch.channels_last)).float()
        confidence, top1 = (values.tolist() for values in logits.softmax(1).max(1))
        pixels, logits = pixels.cpu(), logits.cpu()
        tally.candidates += len(tries)
        judged, left = Accepted(), list(need)
        for number, (asked, attempt) in enumerate(tries):
            agreed = top1[number] == asked
            label = top1[number] if self.labels == "teacher" else asked
            tally.agreed += agreed
            if left[label] > 0 and (label == top1[number] or self.keep_misclassified):
                left[label] -= 1
                judged.pixels.append(to_array(pixels[number]))
                judged.facts.append(Facts(label, asked, attempt, top1[number], confidence[number]))
                judged.logits.append(logits[number])
            elif not self.keep_misclassified:
                tally.rejected[asked] += 1
        return judged
