"""Images between classes: what is drawn, what the generator makes of it, and who looks at the result."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterq_common.distill.objective import StudentObjective
from clusterq_common.errors import ClusterqError
from clusterq_common.taps import ClassGroups, batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec
from clusterq_gen.config import GeneratorConfig, MethodConfig
from clusterq_gen.networks.generator import ConditionalBatchNormGenerator, EmbeddingGenerator, build_generator
from clusterq_gen.training import state
from clusterq_gen.training.latent import LatentBatch, batch_labels
from clusterq_gen.training.loop import train_step
from clusterq_gen.training.mixture import classes_in_mixture, mixtures
from clusterq_gen.training.state import Training
from tests.gen.conftest import CPU, small


@given(st.integers(2, 30), st.integers(1, 40), st.floats(0, 1), st.integers(0, 50), st.data())
def test_rows_are_one_class_or_as_many_as_wanted(classes: int, batch: int, p: float, step: int, data: st.DataObject) -> None:
    per_image = data.draw(st.integers(2, classes))
    labels = torch.arange(batch) % classes
    settings = {"probability": p, "per_image": per_image, "num_classes": classes}
    shares = mixtures(3, step, labels, **settings)
    torch.testing.assert_close(shares.sum(1), torch.ones(batch))
    assert {int(count) for count in (shares > 0).sum(1)} <= {1, per_image}
    assert (shares.gather(1, labels[:, None]) > 0).all(), "the label is always one of the classes"
    assert torch.equal(shares, mixtures(3, step, labels, **settings))
    if p in {0, 1}:
        assert set((shares > 0).sum(1).tolist()) == {per_image if p else 1}


def test_the_probability_is_kept_and_steps_differ() -> None:
    labels = torch.zeros(4000, dtype=torch.long)
    shares = mixtures(0, 0, labels, probability=0.4, per_image=3, num_classes=5)
    mixed = (shares > 0).sum(1) == 3
    assert mixed.float().mean() == pytest.approx(0.4, abs=0.03)
    others = (shares[mixed] > 0).float().mean(0)
    assert others.tolist() == pytest.approx([1, 0.5, 0.5, 0.5, 0.5], abs=0.05), "every other class equally often"
    assert shares[mixed][:, 0].mean() == pytest.approx(1 / 3, abs=0.02)
    assert not torch.equal(shares, mixtures(0, 1, labels, probability=0.4, per_image=3, num_classes=5))


def test_how_many_classes_are_mixed() -> None:
    assert [classes_in_mixture(count, None) for count in (2, 10, 100, 1000)] == [2, 2, 10, 100]
    assert classes_in_mixture(1000, 500) == 500
    assert [MethodConfig(method=name).mixing for name in ("clusterq", "gdfq", "adadfq", "qimera")] == [0, 0, 0, 0.4]
    assert MethodConfig(mix_probability=0.3).mixing == 0.3
    assert MethodConfig(method="qimera", mix_probability=0).mixing == 0


@pytest.mark.parametrize("kind", ["product", "concat", "scaled", "sum", "batchnorm"])
def test_the_generator_superposes_the_rows_of_its_class_tables(kind: str) -> None:
    spec = InputSpec(size=8, channels=1, num_classes=4, mean=(0.5,), std=(0.5,))
    torch.manual_seed(0)
    generator = build_generator(GeneratorConfig(conditioning=kind, width=8, latent_size=10), spec).eval()
    tables = [module for module in generator.modules() if isinstance(module, torch.nn.Embedding)]
    for table in tables:
        torch.nn.init.normal_(table.weight)
    z, labels = torch.randn(3, 10), torch.tensor([2, 0, 3])
    assert torch.equal(generator(z, labels), generator(z, torch.eye(4)[labels])), "one class is one class, however it is said"
    shares = torch.tensor([[0.7, 0.0, 0.3, 0.0]])
    image = generator(z[:1], shares)
    for table in tables:
        table.weight.data[1] = 0.7 * table.weight.data[0] + 0.3 * table.weight.data[2]
    torch.testing.assert_close(image, generator(z[:1], torch.tensor([1])))
    assert isinstance(generator, ConditionalBatchNormGenerator if kind == "batchnorm" else EmbeddingGenerator)


def test_what_was_asked_for() -> None:
    labels = torch.tensor([0, 1, 2])
    shares = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.75, 0, 0], [0, 0, 1.0, 0]])
    groups = ClassGroups.of(labels)
    plain, mixed = LatentBatch(torch.zeros(3, 1), labels, groups), LatentBatch(torch.zeros(3, 1), labels, groups, shares)
    answer = torch.tensor([0, 0, 3])
    assert plain.asked_for(answer).tolist() == [True, False, False]
    assert mixed.asked_for(answer).tolist() == [True, True, False]
    assert plain.unmixed.tolist() == [True, True, True]
    assert mixed.unmixed.tolist() == [True, False, True]
    assert plain.classes is labels
    assert mixed.classes is shares


def test_the_student_learns_soft_labels() -> None:
    teacher_logits, student_logits = torch.randn(5, 7), torch.randn(5, 7)
    shares = mixtures(0, 0, torch.arange(5), probability=0.5, per_image=3, num_classes=7)
    plain = 0.0
    for row, share in zip(student_logits.double(), shares.double(), strict=True):
        whole = math.log(sum(math.exp(value) for value in row.tolist()))
        plain -= sum(float(share[c]) * (float(row[c]) - whole) for c in range(7)) / 5
    terms = StudentObjective(1.0, 1.0, 20.0)(student_logits, teacher_logits, shares)
    assert terms["ce"].item() == pytest.approx(plain, rel=1e-5)


def test_mixed_images_are_no_samples_of_a_class(teacher: Teacher) -> None:
    for probability, zero in ((1.0, True), (0.5, False)):
        run = Training.start(small(teacher, method={"mix_probability": probability}, train={"batch_size": 200}), teacher, CPU)
        with batchnorm_taps(teacher.model) as taps:
            run.end_warmup(log=lambda _: None)
            assert run.centroids is not None
            before = run.centroids.mean.clone()
            assert before.abs().sum() > 0, "centroids start from images of one class"
            run.step = 5
            metrics = train_step(run, taps, run.stored_statistics())
        assert (float(metrics["loss/fda"]) == 0) == zero
        assert torch.equal(run.centroids.mean, before) == zero
        assert float(metrics["loss/class"]) > 0


@pytest.mark.parametrize("kept", [False, True], ids=["drawn when asked for", "kept for a graph"])
def test_the_labels_of_a_step_are_dealt_once(teacher: Teacher, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dealt: list[int] = []

    def counted(seed: int, step: int, **sizes: int) -> tuple[torch.Tensor, ClassGroups]:
        dealt.append(step)
        return batch_labels(seed, step, **sizes)

    monkeypatch.setattr(state, "batch_labels", counted)
    run = Training.start(small(teacher, method={"method": "qimera"}, train={"cuda_graphs": kept}), teacher, CPU)
    for step in (5, 6, 7):
        run.draws.begin(step)
        batch = run.inputs()
        assert batch.mixture is not None
        assert torch.equal(batch.groups.classes[batch.groups.row], batch.labels)
    assert dealt == [5, 6, 7]


def test_nothing_is_drawn_where_nothing_is_mixed(teacher: Teacher) -> None:
    run = Training.start(small(teacher), teacher, CPU)
    plain = run.inputs()
    assert plain.mixture is None
    run = Training.start(small(teacher, method={"method": "qimera"}), teacher, CPU)
    assert run.inputs().mixture is not None
    assert run.inputs(mixed=False).mixture is None
    assert torch.equal(run.inputs().z, plain.z)


def test_more_classes_in_an_image_than_there_are_is_refused(teacher: Teacher) -> None:
    settings = small(teacher, method={"method": "qimera", "mix_classes": 11})
    with pytest.raises(ClusterqError, match="mix_classes: 11 classes in an image, but the teacher knows 10; choose a smaller"):
        Training.start(settings, teacher, CPU)
