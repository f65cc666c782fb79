"""How large a bank is, and what each of its batches is asked for: functions of the settings alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clusterq_common.device.distributed import Ranks
from clusterq_gen.bank.config import BankConfig
from clusterq_gen.config import EmitConfig, GenConfig
from clusterq_gen.training.latent import classes_in_batch


@dataclass(frozen=True)
class BankLayout:
    """A bank's shape.

    Attributes:
        batches: how many batches it has.
        batch_size: images in each.
        num_classes: of the teacher.
        classes: distinct classes in a batch, with equally many images; None where no class is asked for.
    """

    batches: int
    batch_size: int
    num_classes: int
    classes: int | None

    @classmethod
    def of(cls, config: GenConfig, num_classes: int) -> "BankLayout":
        """Batches for all images that the run's shards want, with some to spare for those that the teacher rejects.

        Where no class is asked for, none is rejected and none is spare: the number of each class is then a mean over classes.
        """
        train, bank, wanted = config.train, config.bank, images_of_a_class(config.emit, num_classes)
        if not bank.labelled:
            return cls(math.ceil(wanted * num_classes / train.batch_size), train.batch_size, num_classes, None)
        classes = classes_in_batch(num_classes, train.batch_size, train.classes_per_batch)
        each = train.batch_size // classes
        turns = math.ceil(_with_spare(wanted, bank) / each)
        return cls(math.ceil(turns * num_classes / classes), each * classes, num_classes, classes)

    def labels(self, number: int) -> Tensor | None:
        """Classes asked for in a batch, (N,) int64: classes take turns from batch to batch. None where none is asked for."""
        if self.classes is None:
            return None
        first = number * self.classes % self.num_classes
        return (first + torch.arange(self.batch_size) % self.classes) % self.num_classes

    def share(self, ranks: Ranks) -> range:
        """The batches that one process makes: every `world`-th."""
        return range(ranks.rank, self.batches, ranks.world)


def images_of_a_class(emit: EmitConfig, num_classes: int) -> int:
    """Images wanted of each class, in both splits."""
    return sum(emit.wanted(num_classes).values())


def _with_spare(wanted: int, bank: BankConfig) -> int:
    return math.ceil(wanted * bank.bank_spare)
