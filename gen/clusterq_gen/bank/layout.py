"""Size of a bank and classes of each of its batches, computed from the settings alone."""

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
    """Layout of a bank.

    Attributes:
        batches: number of batches.
        batch_size: images in each batch.
        num_classes: number of the teacher's classes.
        classes: number of distinct classes in a batch, with equally many images each; None where images have no requested class.
    """

    batches: int
    batch_size: int
    num_classes: int
    classes: int | None

    @classmethod
    def of(cls, config: GenConfig, num_classes: int) -> "BankLayout":
        """Return a layout with enough batches for the run's shards, plus spare images for those that the teacher rejects.

        Without requested classes no image is rejected, so there are no spare images. The number of images of each class is then a
        mean over classes.
        """
        train, bank, wanted = config.train, config.bank, images_of_a_class(config.emit, num_classes)
        if not bank.labelled:
            return cls(math.ceil(wanted * num_classes / train.batch_size), train.batch_size, num_classes, None)
        classes = classes_in_batch(num_classes, train.batch_size, train.classes_per_batch)
        each = train.batch_size // classes
        turns = math.ceil(_with_spare(wanted, bank) / each)
        return cls(math.ceil(turns * num_classes / classes), each * classes, num_classes, classes)

    def labels(self, number: int) -> Tensor | None:
        """Return a batch's requested classes, (N,) int64, which rotate from batch to batch; None where none are requested."""
        if self.classes is None:
            return None
        first = number * self.classes % self.num_classes
        return (first + torch.arange(self.batch_size) % self.classes) % self.num_classes

    def share(self, ranks: Ranks) -> range:
        """Return the batches that one process makes: every `world`-th."""
        return range(ranks.rank, self.batches, ranks.world)


def images_of_a_class(emit: EmitConfig, num_classes: int) -> int:
    """Return the number of images wanted of each class, in both splits together."""
    return sum(emit.wanted(num_classes).values())


def _with_spare(wanted: int, bank: BankConfig) -> int:
    return math.ceil(wanted * bank.bank_spare)
