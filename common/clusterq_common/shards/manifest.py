"""manifest.json: what a folder of shards says of itself. Free of torch.

It comes from strangers: everything in it is checked, and nothing in it is ever run or opened as a path outside the folder.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.settings import Settings
from clusterq_common.teacher.spec import InputSpec

FORMAT: Final = "clusterq-shards/1"
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 64 * 1024 * 1024
SHARD_NAME = re.compile(r"synth-(train|heldout)-\d{6}\.tar")

SplitName = Literal["train", "heldout"]
Count = Annotated[int, Field(ge=0)]


def _shard_name(name: str) -> str:
    if not SHARD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no shard name, expected synth-train-000000.tar or the like")
    return name


class Shard(Settings):
    """One tar file."""

    file: Annotated[str, AfterValidator(_shard_name)]
    bytes: Count
    samples: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Split(Settings):
    """`train`, to learn from, or `heldout`, to look at; counts by class index."""

    samples: Count
    per_class: list[Count]
    shards: list[Shard]

    @model_validator(mode="after")
    def _sums(self) -> "Split":
        if self.samples != sum(self.per_class) or self.samples != sum(shard.samples for shard in self.shards):
            raise ValueError("the counts of a split, of its classes and of its shards do not add up")
        return self


class TeacherFacts(Settings):
    """The classifier the images were made for. A factory's name is for information: no code is loaded by it."""

    arch: str
    is_factory: bool
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    spec: InputSpec


class Generation(Settings):
    """How the images came about.

    Attributes:
        method: name of the method.
        settings: every hyperparameter of the run.
        seed: seed of the candidates.
        attempts: next unused candidate number of each class: where an extension goes on.
        candidates: images drawn in all.
        rejected: per class, candidates dropped because the teacher took them for another class.
        teacher_agreement: share of all candidates on which the teacher agreed with the label.
        mean_confidence: of the teacher in its top-1, over the images written.
        clipped: share of pixel values at an end of the range, where the generator may have wanted more.
        keep_misclassified: whether disagreeing images were kept.
        chunk: candidates judged together.
    """

    method: str
    settings: dict[str, Any]
    seed: Count
    attempts: list[Count]
    candidates: Count
    rejected: list[Count]
    teacher_agreement: Annotated[float, Field(ge=0, le=1)]
    mean_confidence: Annotated[float, Field(ge=0, le=1)]
    clipped: Annotated[float, Field(ge=0, le=1)]
    keep_misclassified: bool
    chunk: Annotated[int, Field(ge=1)]


class Manifest(Settings):
    """The whole of manifest.json."""

    format: Literal["clusterq-shards/1"] = FORMAT
    created_by: str
    teacher: TeacherFacts
    generation: Generation
    splits: dict[SplitName, Split]
    has_logits: bool
    versions: dict[str, str]

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        classes = self.teacher.spec.num_classes
        lists = [split.per_class for split in self.splits.values()] + [self.generation.attempts, self.generation.rejected]
        if any(len(counts) != classes for counts in lists):
            raise ValueError(f"a list of counts does not have one entry for each of the {classes} classes")
        names = [shard.file for split in self.splits.values() for shard in split.shards]
        if len(set(names)) != len(names):
            raise ValueError("a shard is listed twice")
        if "train" not in self.splits:
            raise ValueError("there is no train split")
        return self


def read_manifest(folder: Path) -> Manifest:
    """Read and check a folder's manifest.

    Raises:
        ClusterqError: there is none, or it is too large, no JSON, of another format, or inconsistent.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ClusterqError(
            f"--shards: {folder} holds no {MANIFEST}, expected a finished set of shards (it is written last); run `clusterq-gen emit`."
        )
    if path.stat().st_size > LARGEST_MANIFEST:
        raise ClusterqError(
            f"--shards: {path} has {path.stat().st_size} bytes, expected at most {LARGEST_MANIFEST}; do not use it."
        )
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ClusterqError(f"--shards: {path} is no JSON ({type(error).__name__}); get the set again.") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ClusterqError(
            f"--shards: {path} has format {found!r}, expected {FORMAT!r}; use the clusterq version that wrote it."
        )
    return Manifest.checked(values, source=str(path))
