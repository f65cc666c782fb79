"""Sources of candidate images for shards."""

from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clusterq_common.device.setup import to_device
from clusterq_common.errors import ClusterqError
from clusterq_common.run.run_folder import GENERATOR
from clusterq_common.shards.manifest import SplitName
from clusterq_common.teacher.digest import weights_digest
from clusterq_common.teacher.spec import InputSpec
from clusterq_gen.config import GenConfig
from clusterq_gen.emission.shard_plan import ShardPlan, fresh_plan
from clusterq_gen.networks.generator import Generator, build_generator
from clusterq_gen.training.latent import candidate_noise


class CandidateSource(Protocol):
    """A source that draws the `attempt`-th candidate of a class, the same one each time.

    Attributes:
        digest: SHA-256 of everything that the images depend on, apart from the seed.
    """

    digest: str

    def images(self, tries: list[tuple[int, int]]) -> Tensor:
        """Return normalised images (N, C, H, W) for `(label, attempt)` pairs."""
        ...

    def plan(self, split: SplitName, number: int, slots: range, num_classes: int) -> ShardPlan:
        """Plan one shard: its images and their range of attempts. The plan depends on its slots alone."""
        ...


class GeneratorSource:
    """A trained generator in eval mode, so that no image depends on the others in its batch."""

    def __init__(self, generator: Generator, seed: int) -> None:
        self.generator = generator.eval()
        self.seed = seed
        self.digest = weights_digest(generator)

    @classmethod
    def load(cls, run: Path, config: GenConfig, spec: InputSpec, seed: int, device: torch.device) -> "GeneratorSource":
        """Load the generator of a run folder.

        Raises:
            ClusterqError: the run has no finished generator, or one of another shape.
        """
        path = run / GENERATOR
        if not path.is_file():
            raise ClusterqError(
                f"{run} holds no {GENERATOR}, expected a finished training; use `clusterq-gen train --resume`.", setting="run"
            )
        generator = build_generator(config.generator, spec)
        try:
            generator.load_state_dict(load_file(path))
        except (RuntimeError, SafetensorError) as error:
            raise ClusterqError(f"{path} does not fit the run's config.yaml ({error}); train the run again.") from error
        to_device(generator, device)
        return cls(generator, seed)

    def plan(self, split: SplitName, number: int, slots: range, num_classes: int) -> ShardPlan:
        return fresh_plan(split, number, slots, num_classes)

    @torch.no_grad()
    def images(self, tries: list[tuple[int, int]]) -> Tensor:
        device = self.generator.low.device
        z = [candidate_noise(self.seed, label, attempt, latent_size=self.generator.latent_size) for label, attempt in tries]
        labels = torch.tensor([label for label, _ in tries])
        images: Tensor = self.generator(torch.stack(z).to(device), labels.to(device))
        return images
