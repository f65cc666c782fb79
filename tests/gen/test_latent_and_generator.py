"""Labels, noise, and the generators' shapes."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.spec import InputSpec
from clusterq_gen.config import GeneratorConfig
from clusterq_gen.networks.generator import ConditionalBatchNormGenerator, EmbeddingGenerator, build_generator
from clusterq_gen.training.latent import batch_labels, candidate_noise, classes_in_batch, noise

CONDITIONINGS = ["product", "concat", "scaled", "sum", "batchnorm"]


@given(st.integers(2, 60), st.integers(1, 40), st.integers(1, 60), st.integers(0, 200), st.integers(0, 5))
def test_a_batch_has_distinct_classes_with_equal_shares(classes: int, batch: int, wanted: int, step: int, seed: int) -> None:
    per_batch = classes_in_batch(classes, batch, wanted)
    labels, groups = batch_labels(seed, step, batch_size=batch, per_batch=per_batch, num_classes=classes)
    counts = Counter(labels.tolist())
    assert len(labels) == batch
    assert len(counts) == per_batch
    assert max(counts.values()) - min(counts.values()) <= 1
    assert torch.equal(groups.classes[groups.row], labels)
    again, _ = batch_labels(seed, step, batch_size=batch, per_batch=per_batch, num_classes=classes)
    assert torch.equal(labels, again)


def test_every_class_comes_up_equally_often_with_1000_classes_and_16_images() -> None:
    assert classes_in_batch(1000, 16, None) == 4
    assert classes_in_batch(10, 200, None) == 10
    seen: Counter[int] = Counter()
    for step in range(500):
        seen.update(batch_labels(0, step, batch_size=16, per_batch=4, num_classes=1000)[0].tolist())
    assert len(seen) == 1000
    assert set(seen.values()) == {8}


def test_noise_is_a_function_of_its_key() -> None:
    first = noise(0, 3, batch_size=5, latent_size=7)
    assert torch.equal(first, noise(0, 3, batch_size=5, latent_size=7))
    assert not torch.equal(first, noise(0, 4, batch_size=5, latent_size=7))
    assert not torch.equal(first, noise(1, 3, batch_size=5, latent_size=7))
    assert noise(0, 0, batch_size=4000, latent_size=10).std() == pytest.approx(1, abs=0.02)
    assert not torch.equal(candidate_noise(0, 1, 2, latent_size=9), candidate_noise(0, 2, 1, latent_size=9))


@pytest.mark.parametrize(
    ("size", "channels", "classes"),
    [(8, 1, 10), (32, 3, 10), (28, 1, 10), (30, 2, 5), (224, 3, 1000), ((16, 32), 1, 10), ((30, 9), 3, 5), ((65, 128), 1, 5)],
)
def test_any_image_size(size: int | tuple[int, int], channels: int, classes: int) -> None:
    spec = InputSpec(size=size, channels=channels, num_classes=classes, mean=[0.5] * channels, std=[0.2] * channels)
    generator = build_generator(GeneratorConfig(conditioning="paper", width=8, latent_size=10), spec)
    assert isinstance(generator, EmbeddingGenerator if spec.longer_side <= 64 else ConditionalBatchNormGenerator)
    labels = torch.arange(6) % classes
    images = generator(torch.randn(6, 10), labels)
    assert images.shape == (6, *spec.shape)
    assert images.min() >= -2.5
    assert images.max() <= 2.5, "no pixel outside what eight bits can hold"
    images.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters())


@pytest.mark.parametrize("kind", CONDITIONINGS)
def test_the_class_changes_the_image_and_eval_mode_keeps_images_apart(kind: str) -> None:
    spec = InputSpec(size=8, channels=1, num_classes=4, mean=(0.5,), std=(0.5,))
    torch.manual_seed(0)
    generator = build_generator(GeneratorConfig(conditioning=kind, width=8, latent_size=10), spec)
    if isinstance(generator, ConditionalBatchNormGenerator):
        torch.nn.init.normal_(generator.norm0.shift.weight)
    z = torch.randn(2, 10)
    generator(z, torch.tensor([0, 1]))
    generator.eval()
    together = generator(z[[0, 0]], torch.tensor([0, 1]))
    assert not torch.allclose(together[0], together[1])
    alone = generator(z[:1], torch.tensor([0]))
    torch.testing.assert_close(alone[0], together[0])


@pytest.mark.parametrize(
    ("kind", "entering"),
    [
        ("product", lambda z, e: z * e),
        ("concat", lambda z, e: torch.cat([z, e], 1)),
        ("scaled", lambda z, e: torch.cat([0.5 * z, 2 * e], 1)),
        ("sum", lambda z, e: 0.5 * z + 2 * e),
    ],
)
def test_noise_and_class_reach_the_first_layer(kind: str, entering: Callable[[Tensor, Tensor], Tensor]) -> None:
    spec = InputSpec(size=8, channels=1, num_classes=4, mean=(0.5,), std=(0.5,))
    generator = build_generator(GeneratorConfig(conditioning=kind, width=8, latent_size=10), spec)
    assert isinstance(generator, EmbeddingGenerator)
    seen: list[Tensor] = []
    generator.to_map.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    z, labels = torch.randn(3, 10), torch.tensor([2, 0, 3])
    generator(z, labels)
    assert torch.equal(seen[0], entering(z, generator.embedding.weight[labels]))


@pytest.mark.parametrize(("former", "today"), [("auto", "paper"), ("embedding", "product"), ("conditional-bn", "batchnorm")])
def test_configurations_of_older_versions_are_read(former: str, today: str) -> None:
    assert GeneratorConfig.validated({"generator": former, "width": 8}) == GeneratorConfig(conditioning=today, width=8)
    with pytest.raises(ClusterqError, match="generator"):
        GeneratorConfig.validated({"generator": former, "conditioning": today})
