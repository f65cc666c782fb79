"""Candidate images and the teacher's judgement: which of them become samples."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from clusterq_common.images import decode_png, encode_png, normalise, pixel_bounds, to_pixels
from clusterq_common.runtime.progress import progress, say
from clusterq_common.shards.write import Sample
from clusterq_common.teacher.load import Teacher
from clusterq_gen.source import Source

# Networks round differently in batches of different size: a fixed one makes an image independent of how many are wanted.
CHUNK = 64
CANDIDATES_PER_IMAGE = 20


@dataclass
class Tally:
    """Counts over all candidates: what the manifest reports.

    Attributes:
        attempts: next unused candidate number of each class.
        written: images written of each class, in the split at hand.
        rejected: candidates of each class that the teacher took for another one and that were dropped.
        candidates, agreed: how many were drawn, and on how many the teacher agreed with the label.
        confidence: sum of the teacher's confidence in its top-1 over the written images.
        clipped: sum over candidates of the share of values at the end of the pixel range.
        total_written: images written, over all splits.
    """

    attempts: list[int]
    written: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    candidates: int = 0
    agreed: int = 0
    confidence: float = 0.0
    clipped: float = 0.0
    total_written: int = 0

    @classmethod
    def fresh(cls, num_classes: int, attempts: list[int] | None = None) -> "Tally":
        """All counts at zero; candidates start at `attempts`, which an earlier emission may have left."""
        zeros = [0] * num_classes
        return cls(list(attempts or zeros), list(zeros), list(zeros))


class Emitter:
    """Draws candidates, keeps those the teacher agrees with, and hands them on as samples.

    Labels, logits and confidence are the teacher's on the *decoded* PNG: the pixels a student will see. Classes take turns,
    so that a shard read from its start is mixed.
    """

    def __init__(self, source: Source, teacher: Teacher, *, seed: int, keep_misclassified: bool, store_logits: bool) -> None:
        self.source = source
        self.teacher = teacher
        self.seed = seed
        self.keep_misclassified = keep_misclassified
        self.store_logits = store_logits
        self.device = next(teacher.model.parameters()).device

    def emit(self, wanted: list[int], tally: Tally, write: Callable[[Sample], None], description: str) -> None:
        """Call `write(sample)` until each class has as many images as `wanted` says, or its candidates are used up.

        Each class gets at most 20 candidates for each wanted image; then it stays short, with a warning.
        """
        need = list(wanted)
        limit = [tally.attempts[label] + CANDIDATES_PER_IMAGE * count for label, count in enumerate(wanted)]
        with progress(description, sum(wanted)) as ticker:
            while tries := self._next_tries(need, tally, limit):
                accepted = 0
                for sample in self._judge(tries, tally):
                    if need[sample.label] > 0:
                        need[sample.label] -= 1
                        tally.written[sample.label] += 1
                        tally.total_written += 1
                        tally.confidence += sample.teacher_confidence
                        write(sample)
                        accepted += 1
                ticker.advance(accepted)
        short = [label for label, missing in enumerate(need) if missing > 0]
        if short:
            shown = ", ".join(f"{label} ({wanted[label] - need[label]} of {wanted[label]})" for label in short[:8])
            say(
                f"Warning: {description}: {len(short)} classes got fewer images than wanted: {shown}{' ...' if short[8:] else ''}"
            )

    def _next_tries(self, need: list[int], tally: Tally, limit: list[int]) -> list[tuple[int, int]]:
        """The next chunk of (label, attempt): one for each class that still needs images, in turn; none when all is done."""
        open_for = [min(missing, limit[label] - tally.attempts[label]) for label, missing in enumerate(need)]
        tries: list[tuple[int, int]] = []
        while len(tries) < CHUNK and any(count > 0 for count in open_for):
            for label, count in enumerate(open_for):
                if count > 0 and len(tries) < CHUNK:
                    tries.append((label, tally.attempts[label]))
                    tally.attempts[label] += 1
                    open_for[label] -= 1
        return tries

    @torch.no_grad()
    def _judge(self, tries: list[tuple[int, int]], tally: Tally) -> list[Sample]:
        """The accepted samples among the candidates, in order."""
        spec = self.teacher.spec
        padded = tries + [tries[-1]] * (CHUNK - len(tries))
        images = self.source.images(padded)[: len(tries)].float()
        low, high = (bound.to(images.device) for bound in pixel_bounds(spec))
        tally.clipped += float(((images <= low) | (images >= high)).float().mean()) * len(tries)
        encoded = [encode_png(pixels) for pixels in to_pixels(images.cpu(), spec)]
        pixels = torch.stack([decode_png(data, spec) for data in encoded])
        seen = normalise(pixels, spec).to(self.device)
        seen = torch.cat([seen, seen[-1:].expand(CHUNK - len(tries), -1, -1, -1)])
        logits = self.teacher.model(seen.contiguous(memory_format=torch.channels_last))[: len(tries)].float().cpu()
        confidence, top1 = logits.softmax(1).max(1)
        tally.candidates += len(tries)
        samples = []
        for number, (label, attempt) in enumerate(tries):
            agreed = int(top1[number]) == label
            tally.agreed += agreed
            if not agreed and not self.keep_misclassified:
                tally.rejected[label] += 1
                continue
            samples.append(
                Sample(
                    pixels=pixels[number],
                    png=encoded[number],
                    label=label,
                    seed=self.seed,
                    attempt=attempt,
                    teacher_top1=int(top1[number]),
                    teacher_confidence=float(confidence[number]),
                    logits=logits[number].half().numpy() if self.store_logits else None,
                )
            )
        return samples
