"""A bank as a candidate source for shards: its images by class, and the images of each shard."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.images.normalise import normalise
from clusterq_common.shards.manifest import SplitName
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec
from clusterq_gen.bank.files import bank_digest, batch_path, is_finished, made_of, read_answers, read_pixels
from clusterq_gen.bank.layout import BankLayout, images_of_a_class
from clusterq_gen.config import GenConfig
from clusterq_gen.emission.shard_plan import ShardPlan, turns_of


class BankSource:
    """The images of a bank, in order. The `attempt`-th candidate of a class is the `attempt`-th image with that label.

    The first images form the held-out split, in the proportion that the run's settings ask for. The rest is the training split.
    Where images were made for classes, this holds for each class. The t-th image of a split is then the t-th one that the teacher
    agrees with, and the rejected ones before it are its candidates, too. Where the labels are the teacher's top-1, a split is a
    number of consecutive images, whatever their classes.

    Attributes:
        digest: digest of the bank's files.
        capacity: largest number of images of a class by split; a mean over classes where the labels are the teacher's top-1.

    Args:
        paths: the bank's files, in order.
        config: configuration of the run that made the bank.
        spec: format of the teacher's images.
        device: device of the returned images.
        keep_misclassified: whether to accept images that the teacher assigns to another class.
    """

    def __init__(
        self, paths: list[Path], config: GenConfig, spec: InputSpec, device: torch.device, *, keep_misclassified: bool
    ) -> None:
        self.spec, self.device, self.paths = spec, device, paths
        self.labelled = config.bank.labelled
        self.digest = bank_digest(paths)
        self._places: list[list[tuple[int, int]]] = [[] for _ in range(spec.num_classes)]
        self._line: list[int] = []
        accepted: list[list[int]] = [[] for _ in range(spec.num_classes)]
        for number, path in enumerate(paths):
            for row, (label, top1) in enumerate(zip(*read_answers(path), strict=True)):
                if label == top1 or keep_misclassified:
                    accepted[label].append(len(self._places[label]))
                self._places[label].append((number, row))
                self._line.append(label)
        wanted, both = config.emit.wanted(spec.num_classes), images_of_a_class(config.emit, spec.num_classes)
        self._heldout_line = _part(len(self._line), wanted["heldout"] * spec.num_classes, both * spec.num_classes)
        self._stretches: dict[SplitName, list[_Stretch]] = {"train": [], "heldout": []}
        for label, kept in enumerate(accepted):
            heldout = _part(len(kept), wanted["heldout"], both)
            border = kept[heldout - 1] + 1 if heldout else 0
            self._stretches["heldout"].append(_Stretch(kept[:heldout], 0, border))
            self._stretches["train"].append(_Stretch(kept[heldout:], border, len(self._places[label])))
        # The requested number stays allowed even if the teacher rejected too many; spare images allow more.
        self.capacity: dict[SplitName, int] = dict(wanted)
        if self.labelled:
            for split, stretches in self._stretches.items():
                self.capacity[split] = max(self.capacity[split], *(len(stretch.kept) for stretch in stretches))
        else:
            spare = (len(self._line) - self._heldout_line) // spec.num_classes
            self.capacity["train"] = max(self.capacity["train"], spare)

    @classmethod
    def load(
        cls, run: Path, config: GenConfig, teacher: Teacher, device: torch.device, *, keep_misclassified: bool
    ) -> "BankSource":
        """Load the bank in a run folder; `config` is the run's own.

        Raises:
            ClusterqError: the bank is not finished, or was made for other settings or another teacher.
        """
        made = made_of(config, teacher)
        paths = [batch_path(run, number) for number in range(BankLayout.of(config, teacher.spec.num_classes).batches)]
        missing = [path for path in paths if not is_finished(path, made)]
        if missing:
            raise ClusterqError(
                f"{run} holds {len(paths) - len(missing)} of {len(paths)} batches of its bank ({missing[0].name} is missing, damaged "
                "or of another making), expected all; use `clusterq-gen train --resume`.",
                setting="run",
            )
        return cls(paths, config, teacher.spec, device, keep_misclassified=keep_misclassified)

    def images(self, tries: list[tuple[int, int]]) -> Tensor:
        """Return normalised images (N, C, H, W) for `(label, attempt)` pairs."""
        wanted: dict[int, list[tuple[int, int]]] = {}
        for place, (label, attempt) in enumerate(tries):
            number, row = self._places[label][attempt]
            wanted.setdefault(number, []).append((place, row))
        pixels = torch.empty(len(tries), *self.spec.shape, dtype=torch.uint8)
        for number, places in wanted.items():
            pixels[[place for place, _ in places]] = read_pixels(self.paths[number], [row for _, row in places])
        return normalise(pixels.to(self.device), self.spec)

    def plan(self, split: SplitName, number: int, slots: range, num_classes: int) -> ShardPlan:
        """Plan one shard: the next images of the split, or of each class in it."""
        if self.labelled:
            turns = turns_of(slots, num_classes)
            stretches = [stretch.between(turn) for stretch, turn in zip(self._stretches[split], turns, strict=True)]
            return ShardPlan(split, number, slots.start, tuple(map(len, turns)), *_columns(stretches))
        start = 0 if split == "heldout" else self._heldout_line
        end = self._heldout_line if split == "heldout" else len(self._line)
        first, last = min(start + slots.start, end), min(start + slots.stop, end)
        before, upto = Counter(self._line[:first]), Counter(self._line[:last])
        pairs = [(before[label], upto[label]) for label in range(num_classes)]
        return ShardPlan(split, number, slots.start, tuple(limit - attempt for attempt, limit in pairs), *_columns(pairs))


class _Stretch:
    """Candidates of one class for one split: attempts [start, end), among them the accepted ones, `kept`."""

    def __init__(self, kept: Sequence[int], start: int, end: int) -> None:
        self.kept, self.end = kept, end
        self._bounds = [start, *(attempt + 1 for attempt in kept)]

    def between(self, turns: range) -> tuple[int, int]:
        """Return the range of attempts for some of the images: from after the previous image to the last one, or what is left."""
        first = self._bounds[turns.start] if turns.start < len(self._bounds) else self.end
        last = self._bounds[turns.stop] if turns.stop < len(self._bounds) else self.end
        return first, last


def _columns(pairs: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(first for first, _ in pairs), tuple(last for _, last in pairs)


def _part(count: int, share: int, whole: int) -> int:
    """Return `share` of `whole` images, or the same proportion of `count` if that is smaller."""
    return min(share, count * share // whole)
