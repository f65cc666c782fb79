"""Which image of a bank goes into which shard."""

from itertools import chain
from pathlib import Path

import torch

from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_gen.bank.files import batch_path, write_batch
from clusterq_gen.bank.optimise import BankBatch
from clusterq_gen.bank.source import BankSource
from clusterq_gen.emission.shard_plan import ShardPlan, plan_shards
from tests.gen.bank_settings import settings

CPU = torch.device("cpu")


def bank_of(folder: Path, labels: list[int], top1: list[int], method: str, **emit: int) -> BankSource:
    """A bank on disk whose n-th image is all n."""
    spec = InputSpec(size=2, channels=1, num_classes=3, mean=(0.0,), std=(1.0,))
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    (folder / "bank").mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, len(labels), 5)):
        rows = slice(start, start + 5)
        batch = BankBatch(pixels[rows].contiguous(), torch.tensor(labels[rows]), torch.tensor(top1[rows]), {})
        paths.append(batch_path(folder, number))
        write_batch(paths[-1], batch, "made")
    config = settings(TeacherConfig(arch="any"), method, emit=dict(emit))
    return BankSource(paths, config, spec, CPU, keep_misclassified=False)


def drawn(source: BankSource, plan: ShardPlan) -> list[list[int]]:
    """By class, the images of a plan's candidates."""
    tries = [[(label, attempt) for attempt in range(plan.attempts[label], plan.limit[label])] for label in range(3)]
    return [[round(float(value) * 255) for value in source.images(own)[:, 0, 0, 0]] if own else [] for own in tries]


def test_blocks_of_a_labelled_bank(tmp_path: Path) -> None:
    labels = [n % 3 for n in range(18)]
    top1 = list(labels)
    for rejected in (3, 9, 4, 7, 13):
        top1[rejected] = 2  # of class 0: images 3, 9; of class 1: 4, 7, 13
    source = bank_of(tmp_path, labels, top1, "intraq", per_class=3, heldout_per_class=1)
    plans = plan_shards([{"train": 3, "heldout": 1}], 3, 4, source.plan)
    images = {plan.name: drawn(source, plan) for plan in plans}
    assert images["synth-heldout-000000.tar"] == [[0], [], [2]], "class 1 is short: its held-out part shrinks with it"
    # The line of slots is 0 1 2 0 | 1 2 0 1 | 2; an image's candidates are those rejected before it, too.
    assert images["synth-train-000000.tar"] == [[3, 6, 9, 12], [1], [5]]
    assert images["synth-train-000001.tar"] == [[15], [4, 7, 10, 13, 16], [8]]
    assert images["synth-train-000002.tar"] == [[], [], [11]]
    assert source.capacity == {"train": 5, "heldout": 1}
    extended = plan_shards([{"train": 3, "heldout": 1}, {"train": 5, "heldout": 1}], 3, 4, source.plan)
    assert [plan for plan in plans if plan not in extended] == []
    more = [drawn(source, plan) for plan in extended if plan not in plans]
    assert [list(chain.from_iterable(by_class[label] for by_class in more)) for label in range(3)] == [[], [], [14, 17]]


def test_blocks_of_an_unlabelled_bank(tmp_path: Path) -> None:
    labels = [0, 0, 1, 0, 0, 0, 2, 0, 1, 1, 0, 0, 0, 0, 2]
    source = bank_of(tmp_path, labels, labels, "zeroq", per_class=4, heldout_per_class=1)
    plans = plan_shards([{"train": 4, "heldout": 1}], 3, 5, source.plan)
    images = {plan.name: drawn(source, plan) for plan in plans}
    assert images["synth-heldout-000000.tar"] == [[0, 1], [2], []]
    assert images["synth-train-000000.tar"] == [[3, 4, 5, 7], [], [6]]
    assert images["synth-train-000001.tar"] == [[10, 11, 12], [8, 9], []]
    assert images["synth-train-000002.tar"] == [[13], [], [14]]
    assert [sum(plan.wanted) for plan in plans] == [5, 5, 2, 3]
    assert source.capacity == {"train": 4, "heldout": 1}
