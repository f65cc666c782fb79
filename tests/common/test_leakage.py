"""Figures of a leakage report against slow, plain computations."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clusterq_common.teacher.spec import InputSpec
from clusterq_report.leakage import arrangements, neighbours
from clusterq_report.leakage.arrangements import Arrangements, corrected_for_many, p_value
from clusterq_report.leakage.beside import Real
from clusterq_report.leakage.collect import Networks, Source, collect, margin
from clusterq_report.leakage.config import LeakageConfig
from clusterq_report.leakage.copies import Threshold, calibrated, ratios
from clusterq_report.leakage.means import MeanSide
from clusterq_report.leakage.measure import compare, split_control
from clusterq_report.leakage.nearness import NearestKind
from clusterq_report.leakage.neighbours import Neighbours, nearest
from clusterq_report.leakage.space_figures import share_interval
from clusterq_report.leakage.spaces import Images, moved
from tests.common.leakage_images import FEW, images_of, pictures


@pytest.mark.parametrize("whole", [True, False])
def test_nearest_neighbours(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", 5)
    monkeypatch.setattr(neighbours, "COLUMNS", 7)
    monkeypatch.setattr(neighbours, "DIFFERENCES", 40)
    random = torch.Generator().manual_seed(0)
    versions = [torch.randint(256, (12, 6), generator=random, dtype=torch.uint8) for _ in range(2)]
    candidates = torch.randint(256, (30, 6), generator=random, dtype=torch.uint8)
    candidates[9], candidates[20] = versions[1][3], versions[1][3]
    if not whole:
        versions, candidates = [version.float() / 7 for version in versions], candidates.float() / 7
    listed = nearest(versions, candidates, 8, whole=whole)
    for query in range(12):
        each = [min(float((version[query].double() - other.double()).norm()) for version in versions) for other in candidates]
        order = sorted(range(30), key=lambda number: (each[number], number))[:8]
        assert listed.numbers[query].tolist() == order
        assert listed.distances[query].tolist() == pytest.approx([each[number] for number in order], rel=1e-12)
    assert listed.distances[3, :2].tolist() == [0, 0], "copies lie at no distance, not at rounding's"
    assert listed.numbers[3, :2].tolist() == [9, 20]
    assert nearest(versions, candidates, 99, whole=whole).numbers.shape == (12, 30)


def test_versions_are_all_shifts_by_a_pixel_and_reflections() -> None:
    picture = pictures(1, 0, side=6)
    versions = moved(images_of(picture, torch.zeros(1, dtype=torch.int64)))
    assert len(versions) == 18
    plain = [
        torch.tensor([[[int(image[c, y + down, x + right]) for x in range(4)] for y in range(4)] for c in range(2)]).flatten()
        for image in (picture[0], picture[0].flip(2))
        for down, right in itertools.product(range(3), range(3))
    ]
    assert all(any(version[0].long().equal(other) for version in versions) for other in plain)


def plain_share(distances: Tensor, kinds: list[int]) -> float:
    """Of queries, the share whose nearest drawn image is a training image; ties count half."""
    scores = []
    for row in distances.tolist():
        train = min(distance for distance, kind in zip(row, kinds, strict=True) if kind == 1)
        held = min(distance for distance, kind in zip(row, kinds, strict=True) if kind == -1)
        scores.append(1.0 if train < held else 0.5 if train == held else 0.0)
    return sum(scores) / len(scores)


def pool(of_train: list[int], of_held: list[int], **settings: int) -> Arrangements:
    """Arrangements of so many training and held-out images of each class."""
    labels = torch.cat([torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)) for counts in (of_train, of_held)])
    trained = torch.arange(len(labels)) < sum(of_train)
    return Arrangements(labels, trained, **{"permutations": 20, "subsamples": 3, "seed": 0, **settings})


@pytest.mark.parametrize(("of_train", "of_held"), [([8, 6], [8, 6]), ([20, 9], [6, 9])], ids=["equal", "more of one"])
def test_the_share_whose_nearest_image_is_a_training_image(of_train: list[int], of_held: list[int]) -> None:
    arrangements = pool(of_train, of_held)
    random = torch.Generator().manual_seed(1)
    # Few distinct distances, so that there are ties.
    distances = torch.randint(12, (9, len(arrangements.labels)), generator=random).double()
    labels = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3])
    ordered, numbers = distances.sort(dim=1, stable=True)
    kinds = NearestKind(Neighbours(ordered, numbers), labels, arrangements, 4)
    places = torch.cat(list(arrangements))
    for some in arrangements:
        kinds.add(some)
    nearness = kinds.result()
    assert len(nearness.shares) == 21
    for at, place in enumerate(places):
        drawn = [draw[place].tolist() for draw in arrangements.draws]
        assert float(nearness.shares[at]) == pytest.approx(
            sum(plain_share(distances, kinds_of) for kinds_of in drawn) / len(drawn)
        )
        own = sum(plain_share(distances[labels == 3], kinds_of) for kinds_of in drawn) / len(drawn)
        assert float(nearness.by_class[at, 3]) == pytest.approx(own)
    assert nearness.by_class[:, 2].isnan().all(), "no query of this class"


def test_assignments_keep_classes_and_draws_are_of_equal_size() -> None:
    arrangements = pool([20, 9, 2], [6, 9, 0], permutations=50)
    assert arrangements.equal.tolist() == [6, 9, 0]
    for draw in arrangements.draws:
        for kind in (1, -1):
            assert torch.bincount(arrangements.labels[draw == kind], minlength=3).tolist() == [6, 9, 0]
        assert not (draw[~arrangements.trained] == 1).any()
    first, *others = torch.cat(list(arrangements))
    assert first.tolist() == list(range(46))
    for place in others:
        assert place.sort().values.equal(first)
        assert arrangements.labels[place].equal(arrangements.labels)
    assert len({tuple(place.tolist()) for place in others}) == 50
    assert len(pool([8, 6], [8, 6]).draws) == 1, "nothing to draw where there are equally many"


def test_a_list_is_long_enough_to_hold_a_drawn_image() -> None:
    lengths = {(1, 1): 8, (3, 1): 8 + math.ceil(32 / math.log(2))}
    for (train, held), length in lengths.items():
        assert pool([train * 100], [held * 100]).list_length == length
    assert pool([3], [2]).list_length == 5, "no longer than the pool"


def test_queries_with_one_nearest_image_count_as_one() -> None:
    arrangements = pool([4], [4], permutations=0)
    numbers = torch.tensor([[0, 5]] * 6 + [[1, 5], [5, 1]])
    kinds = NearestKind(
        Neighbours(torch.tensor([[1.0, 2.0]] * 8, dtype=torch.float64), numbers),
        torch.zeros(8, dtype=torch.int64),
        arrangements,
        1,
    )
    for places in arrangements:
        kinds.add(places)
    nearness = kinds.result()
    assert float(nearness.shares[0]) == 7 / 8
    assert nearness.effective == pytest.approx(64 / (36 + 1 + 1))
    low, high = share_interval(7 / 8, nearness.effective)
    assert low < 0.3 < 7 / 8 < high


def test_p_values() -> None:
    assert p_value(torch.tensor([3.0, 1, 2, 4, 3])) == 3 / 5
    random = torch.Generator().manual_seed(0)
    statistics = torch.randn(400, 3, generator=random, dtype=torch.float64)
    statistics = torch.cat([statistics, 7 * statistics[:, :1], torch.ones(400, 1, dtype=torch.float64)], 1)
    statistics[0] = torch.tensor([2.5, 0, 9, 17.5, 1])
    corrected = corrected_for_many(statistics)
    usual = [
        [(float(x) - float(column.mean())) / float(column.std(correction=0)) for x in column] for column in statistics.T[:4]
    ]
    for place in range(4):
        at_least = sum(max(usual[other][row] for other in range(4)) >= usual[place][0] - 1e-9 for row in range(400))
        assert float(corrected[place]) == pytest.approx(at_least / 400)
    assert float(corrected[0]) == float(corrected[3]), "the same statistic in other units"
    assert float(corrected[2]) == 1 / 400
    assert float(corrected[4]) == 1, "one that never changes"


def test_a_threshold_is_an_order_statistic_with_its_exact_interval() -> None:
    scipy = pytest.importorskip("scipy.stats")
    control = torch.rand(999, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    limit = calibrated(control, 0.005)
    assert (limit.rank, limit.control) == (4, 999)
    assert limit.limit == sorted(control.tolist())[3]
    assert limit.rate == 4 / 1000
    assert limit.interval == pytest.approx(scipy.beta.ppf([0.025, 0.975], 4, 996).tolist(), rel=1e-6)
    for originals in (0, 1, 5, 20, 300):
        assert limit.excess(originals, 300) == pytest.approx(
            float(scipy.betabinom.sf(originals - 1, 300, 4, 996)), rel=1e-6, abs=1e-12
        )
    assert calibrated(control[:10], 0.001).rank == 1, "one image's share is the least there is"


def test_excess_is_the_share_of_draws_with_as_many_below_the_threshold() -> None:
    random = torch.Generator().manual_seed(0)
    draws = torch.rand(4000, 30 + 20, generator=random, dtype=torch.float64)
    below = (draws[:, 30:] < draws[:, :30].sort(dim=1).values[:, 1:2]).sum(1)
    for originals in (1, 2, 4):
        assert Threshold(0.0, 2, 30).excess(originals, 20) == pytest.approx(
            float((below >= originals).double().mean()), abs=0.03
        )


def test_ratios() -> None:
    near, other = torch.tensor([0.0, 0, 2, 3]), torch.tensor([0.0, 2, 0, 4])
    assert ratios(near, other).tolist() == [1, 0, math.inf, 0.75]


@pytest.mark.parametrize(("of_train", "of_held"), [([9, 7, 5], [9, 7, 5]), ([9, 7, 5], [4, 12, 1])], ids=["equal", "unequal"])
def test_class_means(of_train: list[int], of_held: list[int]) -> None:
    arrangements = pool(of_train, of_held, permutations=5)
    random = torch.Generator().manual_seed(3)
    real = torch.randn(len(arrangements.labels), 4, generator=random, dtype=torch.float64)
    made, labels = torch.randn(12, 4, generator=random, dtype=torch.float64), torch.tensor([0, 1, 2] * 4)
    side = MeanSide(made, labels, real, arrangements)
    places = torch.cat(list(arrangements))
    for some in arrangements:
        side.add(some)
    shift = side.result()
    assert shift is not None
    assert shift.classes.tolist() == [label for label in range(3) if of_held[label] >= 2]
    for at, place in enumerate(places):
        trained = arrangements.trained[place]
        for column, label in enumerate(shift.classes.tolist()):
            own = arrangements.labels == label
            train, held = real[own & trained].mean(0), real[own & ~trained].mean(0)
            line = made[labels == label].mean(0) - real[own].mean(0)
            expected = float((train - held) @ line) / float((real[own] @ line).std())
            assert float(shift.by_class[at, column]) == pytest.approx(expected, rel=1e-9)
            if of_train == of_held:
                mean = made[labels == label].mean(0)
                nearer = float((mean - held).square().sum() - (mean - train).square().sum())
                assert math.copysign(1, nearer) == math.copysign(1, expected)


def test_margins_do_not_saturate() -> None:
    logits = torch.tensor([[3.0, 1, 0], [60, 0, 0], [61, 0, 0]])
    margins = margin(logits, torch.tensor([0, 0, 0]))
    share = logits[0].double().softmax(0)[0]
    assert float(margins[0]) == pytest.approx(math.log(share / (1 - share)))
    assert margins[2] - margins[1] == pytest.approx(1), "both probabilities round to one"


def test_control_images_are_half_of_each_class_at_most() -> None:
    held = images_of(pictures(30, 0), torch.tensor([0] * 20 + [1] * 9 + [2]))
    for most, counts in ((100, [10, 4, 0]), (12, [8, 3, 0])):
        control, rest = split_control(held, most, seed=0)
        assert torch.bincount(control.labels, minlength=3).tolist() == counts
        assert sorted(torch.cat([control.numbers, rest.numbers]).tolist()) == list(range(30))


def test_order_on_disk_changes_nothing() -> None:
    pixels, labels = pictures(40, 0), torch.arange(40) % 3

    def reading(order: Tensor) -> Callable[[list[int]], tuple[Tensor, Tensor, list[int]]]:
        return lambda numbers: (pixels[order[numbers]], labels[order[numbers]], numbers)

    spec = InputSpec(size=8, channels=2, num_classes=3, mean=(0.5, 0.5), std=(0.5, 0.5))
    parts = []
    for order in (torch.arange(40), torch.randperm(40, generator=torch.Generator().manual_seed(0))):
        collected = collect(Source(reading(order), list(range(40)), "train", 2), Networks(spec, torch.device("cpu")))
        parts.append(collected)
        assert order[collected.numbers].sort().values.tolist() == list(range(40))
    assert parts[0].small.equal(parts[1].small)
    assert parts[0].labels.equal(parts[1].labels)


def settings(**changes: float) -> LeakageConfig:
    return LeakageConfig.validated({"permutations": 499, "false_alarms": 0.02, **changes})


def sets(seed: int, planted: int, change: Callable[[Tensor], Tensor] = lambda pixels: pixels) -> tuple[Images, Real]:
    """A set of 60 images with planted training images, 75 training images, and 150 held-out ones, all of one source."""
    labels = torch.arange(285) % 3
    every = pictures(285, seed)
    made, train, held = every[:60].clone(), every[60:135], every[135:]
    made[:planted] = change(train[:planted])
    return images_of(made, labels[:60]), Real(images_of(train, labels[60:135]), images_of(held, labels[135:]))


def test_planted_copies_are_found() -> None:
    """Also altered ones, in the space that is meant for them."""

    def shifted(images: Tensor) -> Tensor:
        return images.roll((1, -1), (2, 3)).flip(3)

    for change, exact in ((lambda pixels: pixels, ("pixels", "moved")), (shifted, ("moved",))):
        by_space = {space.name: space for space in compare(*sets(0, 8, change), FEW, 3, settings()).spaces}
        for name, space in by_space.items():
            assert space.copies.exact == (8 if name in exact else 0)
            assert space.copies.found == (name in exact), space.copies
        assert {pair.number for pair in by_space["moved"].pairs[:8]} == set(range(8))
        assert [pair.train for pair in by_space["moved"].pairs[:8]] == [pair.number for pair in by_space["moved"].pairs[:8]]


def test_a_set_that_lies_nearer_is_found_and_one_of_strangers_is_not() -> None:
    made, real = sets(1, 60, lambda pixels: (0.7 * pixels + 0.3 * pictures(len(pixels), 99)).to(torch.uint8))
    near = compare(made, real, FEW[:1], 3, settings())
    assert near.spaces[0].nearness.value > 0.7
    assert near.spaces[0].nearness.found
    strangers = compare(*sets(2, 0), FEW[:1], 3, settings())
    for space in strangers.spaces:
        assert not space.nearness.found
        assert not space.copies.found
        assert space.nearness.interval[0] < 0.5 < space.nearness.interval[1]


def test_what_held_out_images_show_too_is_no_finding() -> None:
    """Training images that lie in the middle of all others, as in the features of an overfitted network."""
    made, real = sets(3, 0)
    train = images_of((0.5 * real.train.small + 64).to(torch.uint8), real.train.labels)
    nearness = compare(made, Real(train, real.held), FEW[:1], 3, settings()).spaces[0].nearness
    assert nearness.corrected < 0.05
    assert nearness.control_p < 0.01
    assert not nearness.neutral
    assert not nearness.found


def test_the_same_again_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(*sets(4, 3), FEW[:1], 3, settings())
    monkeypatch.setattr(arrangements, "AT_ONCE", 7)
    monkeypatch.setattr(neighbours, "ROWS", 13)
    monkeypatch.setattr(neighbours, "COLUMNS", 17)
    assert compare(*sets(4, 3), FEW[:1], 3, settings()) == first
    assert compare(*sets(4, 3), FEW[:1], 3, settings(seed=1)) != first


def test_many_images_near_to_one_training_image_are_one_find() -> None:
    """Else a set of blank images would be an alarm as soon as one training image is blank."""
    made, real = sets(5, 0)
    blurred = (real.train.small[:1] + torch.arange(20).view(-1, 1, 1, 1) % 3).to(torch.uint8)
    made = images_of(torch.cat([blurred, made.small[20:]]), made.labels)
    copies = compare(made, real, FEW[:1], 3, settings()).spaces[0].copies
    assert copies.count >= 20
    assert copies.originals <= copies.count - 19
    assert not copies.found
